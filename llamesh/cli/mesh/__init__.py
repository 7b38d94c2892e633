"""One machine's mesh as the command supervises it: processes, Envoy, logs, checks. Nothing here imports the server side."""
