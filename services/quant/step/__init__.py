"""The programs of the steps: `python -m services.quant.step STEP JOB [TYPE]` (docs/adr/0036-quant-jobs.md)."""
