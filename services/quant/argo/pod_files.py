"""The files through which the service and the pods of a job speak to each other."""

JOB_FOLDER = "/etc/llamesh-job"
"""Where the pods of a job find its description."""
JOB_FILE = "job.json"
CALIBRATION = "calibration.txt"
"""The text of an importance matrix."""
OUTCOME = "/tmp/llamesh-outcome.json"  # noqa: S108 - in a container that runs one program
"""Where the program of a pod writes its outcome, which Argo copies into the state of the workflow."""
OUTCOME_PARAMETER = "outcome"
