"""The Workflow of a job: what is sent to the cluster. No I/O.

One task per step that is not done, with the same programs that run on one machine. The tasks of a type follow each other; the types are
independent, so a type that fails does not stop the others. Invariant: a Workflow has no credential and no text of a caller; pods read
credentials from a Secret, and the job from a ConfigMap of the same name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hera.workflows import (
    DAG,
    Container,
    Env,
    Parameter,
    Resources,
    RetryStrategy,
    SecretEnv,
    Task,
    Workflow,
    models,
)

from llamesh.kit.config import Settings
from services.quant.argo.pod_files import JOB_FOLDER, OUTCOME, OUTCOME_PARAMETER
from services.quant.argo.tasks import task_name
from services.quant.states import StepKind
from services.quant.step_process import REFUSED, STEP_SECONDS

JOB_LABEL = "llamesh.io/job"
_HOME = "/var/lib/llamesh"
_USER = 1000
"""The user of the image (deploy/container/Dockerfile)."""
_KEEP_SECONDS = 24 * 3600
"""Lifetime of a workflow after its end: people and the service can read it until then."""
_TRIES = 5
_WORDS = 600.0
"""Seconds that a step's own deadline ends before that of its pod, so that its words arrive."""
_MEMORY = 1 << 30
"""Memory in bytes that a program needs beside the source model, which it maps."""
_CREDENTIALS = ("MINIO_ACCESS_KEY", "MINIO_SECRET_KEY", "QUANT_MINIO_ACCESS_KEY", "QUANT_MINIO_SECRET_KEY")


@dataclass(frozen=True, slots=True)
class JobPlan:
    """What a workflow is made from. `steps` are those that are not done, in their order; `source_bytes` is the length of the source."""

    name: str
    job_id: str
    steps: Sequence[tuple[StepKind, str]]
    source_bytes: int
    disk_bytes: int


def workflow_name(job_id: str, attempt: int) -> str:
    """Return the name of the workflow of an attempt of a job."""
    return f"llamesh-quant-{job_id.removeprefix('job_')}-{attempt}"


def manifest_of(plan: JobPlan, settings: Settings) -> dict[str, Any]:
    """Return the Workflow as JSON values."""
    with Workflow(
        name=plan.name,
        namespace=settings.argo_namespace,
        labels={"app.kubernetes.io/name": "llamesh-quant", JOB_LABEL: plan.job_id},
        entrypoint="job",
        service_account_name=settings.argo_service_account,
        # Only Argo's own container talks to the API of the cluster.
        automount_service_account_token=False,
        executor=models.ExecutorConfig(service_account_name=settings.argo_service_account),
        parallelism=settings.argo_parallel_steps,
        active_deadline_seconds=int(STEP_SECONDS * len(plan.steps)),
        ttl_strategy=models.TTLStrategy(seconds_after_completion=_KEEP_SECONDS),
        volume_claim_gc=models.VolumeClaimGC(strategy="OnWorkflowCompletion"),
        security_context=models.PodSecurityContext(
            run_as_non_root=True,
            run_as_user=_USER,
            fs_group=_USER,
            seccomp_profile=models.SeccompProfile(type="RuntimeDefault"),
        ),
    ) as workflow:
        workflow.volumes = [models.Volume(name="job", config_map=models.ConfigMapVolumeSource(name=plan.name))]
        workflow.volume_claim_templates = [_claim(plan, settings)]
        with DAG(name="job", fail_fast=False):
            tasks = {
                step: Task(name=task_name(*step), template=_template(plan, settings, *step)) for step in plan.steps
            }
            for step, before in _order(plan.steps):
                tasks[before] >> tasks[step]
    found: dict[str, Any] = workflow.to_dict()
    return found


def config_map_of(name: str, workflow_uid: str, files: dict[str, str], settings: Settings) -> dict[str, Any]:
    """Return the ConfigMap with the description of a job. The cluster removes it together with the workflow."""
    owner = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": name, "uid": workflow_uid}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": settings.argo_namespace, "ownerReferences": [owner]},
        "data": files,
        "immutable": True,
    }


def _order(steps: Sequence[tuple[StepKind, str]]) -> Iterable[tuple[tuple[StepKind, str], tuple[StepKind, str]]]:
    """Yield each step with the one that it waits for."""
    last: dict[str, tuple[StepKind, str]] = {}
    for step in steps:
        before = last.get(step[1]) or last.get("")
        if before:
            yield step, before
        last[step[1]] = step


def _claim(plan: JobPlan, settings: Settings) -> models.PersistentVolumeClaim:
    return models.PersistentVolumeClaim(
        metadata=models.ObjectMeta(name="work"),
        spec=models.PersistentVolumeClaimSpec(
            access_modes=["ReadWriteOnce"],
            storage_class_name=settings.argo_storage_class or None,
            resources=models.VolumeResourceRequirements(requests={"storage": models.Quantity(str(plan.disk_bytes))}),
        ),
    )


def _template(plan: JobPlan, settings: Settings, kind: StepKind, of_type: str) -> Container:
    # fetch and publish stream; all others map the source.
    memory = _MEMORY + (0 if kind in (StepKind.FETCH, StepKind.PUBLISH) else plan.source_bytes)
    return Container(
        name=f"step-{task_name(kind, of_type)}",
        image=settings.argo_image,
        # -P: no file of the working folder is imported.
        command=["python", "-P", "-m", "services.quant.argo.pod"],
        args=[JOB_FOLDER, OUTCOME, kind, plan.job_id, *([of_type] if of_type else [])],
        env=_environment(settings, kind),
        resources=Resources(cpu_request=1, memory_request=f"{memory >> 20}Mi"),
        active_deadline_seconds=str(int(STEP_SECONDS + _WORDS)),
        retry_strategy=RetryStrategy(
            limit=_TRIES,
            # A step that is refused is refused again. All else, a lost pod among it, may succeed later.
            expression=f'lastRetry.status == "Error" or lastRetry.exitCode != "{REFUSED}"',
            backoff=models.Backoff(duration="15s", factor=models.IntOrString(root="2")),
        ),
        outputs=[
            Parameter(name=OUTCOME_PARAMETER, value_from=models.ValueFrom(path=OUTCOME, default="")),
        ],
        volume_mounts=[
            models.VolumeMount(name="work", mount_path=_HOME),
            models.VolumeMount(name="job", mount_path=JOB_FOLDER, read_only=True),
        ],
        security_context=models.SecurityContext(
            allow_privilege_escalation=False, capabilities=models.Capabilities(drop=["ALL"])
        ),
    )


def _environment(settings: Settings, kind: StepKind) -> list[Env | SecretEnv]:
    values = {
        "LLAMESH_HOME": _HOME,
        "MINIO_ENDPOINT": settings.minio_endpoint,
        "MINIO_BUCKET": settings.minio_bucket,
        "MINIO_SECURE": str(settings.minio_secure).lower(),
        "QUANT_MINIO_ENDPOINT": settings.quant_minio_endpoint,
        "QUANT_MINIO_BUCKET": settings.quant_minio_bucket,
        "QUANT_MINIO_SECURE": str(settings.quant_minio_secure).lower(),
        "LLAMA_QUANTIZE_BIN": settings.llama_quantize_bin,
        "LLAMA_IMATRIX_BIN": settings.llama_imatrix_bin,
    }
    environment: list[Env | SecretEnv] = [Env(name=name, value=value) for name, value in values.items() if value]
    if kind in (StepKind.FETCH, StepKind.PUBLISH):
        environment += [
            SecretEnv(name=name, secret_name=settings.argo_secret, secret_key=name, optional=True)
            for name in _CREDENTIALS
        ]
    return environment
