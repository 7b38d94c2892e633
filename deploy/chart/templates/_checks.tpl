{{/* Values that do not fit together, in words and with the remedy. */}}
{{- define "llamesh.checks" -}}
{{- $values := .Values }}
{{- $secrets := .Values.secrets }}
{{- if $secrets.existing }}
{{- if not $secrets.existingModels }}
{{- fail "secrets.existingModels is missing: engine pods read models by a Secret of their own. Make one in each of allowedNamespaces with MINIO_ENDPOINT, MINIO_BUCKET, MINIO_SECURE, MINIO_ACCESS_KEY and MINIO_SECRET_KEY, and name it in secrets.existingModels" }}
{{- end }}
{{- else }}
{{- $needed := dict
  "JWT_SECRET" (list "jwtSecret" "make one with `openssl rand -hex 32`")
  "LLAMESH_ADMIN_PASSWORD" (list "adminPassword" "it is the first password of the user admin")
  "MINIO_ACCESS_KEY" (list "minioAccessKey" "it is a key of the S3 server")
  "MINIO_SECRET_KEY" (list "minioSecretKey" "it is a key of the S3 server")
}}
{{- if .Values.postgres.enabled }}
{{- $_ := set $needed "POSTGRES_PASSWORD" (list "postgresPassword" "letters and digits, for the bundled PostgreSQL") }}
{{- else }}
{{- $_ := set $needed "DATABASE_URL" (list "databaseUrl" "postgresql://user:password@host:port/name, or set postgres.enabled") }}
{{- end }}
{{- if .Values.quant.minio.enabled }}
{{- $words := "it is a key that the bundled MinIO of the Quant service gets" }}
{{- $_ := set $needed "QUANT_MINIO_ACCESS_KEY" (list "quantMinioAccessKey" $words) }}
{{- $_ := set $needed "QUANT_MINIO_SECRET_KEY" (list "quantMinioSecretKey" $words) }}
{{- end }}
{{- $data := include "llamesh.secretData" . | fromYaml }}
{{- range $key, $value := $needed }}
{{- if not (get $data $key) }}
{{- fail (printf "secrets.%s is missing: %s. The chart has no default secrets. Put it into a file for --values, or name a Secret of your own in secrets.existing" (first $value) (last $value)) }}
{{- end }}
{{- end }}
{{- if not $secrets.existingModels }}
{{- range (include "llamesh.namespaces" . | fromJson).names }}
{{- $models := include "llamesh.modelsData" (dict "root" $ "namespace" .) | fromYaml }}
{{- if not (and $models.MINIO_ACCESS_KEY $models.MINIO_SECRET_KEY) }}
{{- fail (printf "secrets.modelsAccessKey and secrets.modelsSecretKey are missing: whoever may read Secrets in the namespace %s would have the keys of the mesh, which write. Make keys in the S3 server that may only read the bucket %s, or name Secrets of your own in secrets.existingModels" . $.Values.store.bucket) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- if and (not (include "llamesh.storeEndpoint" .)) }}
{{- fail "store.endpoint is missing: name the S3 server for models as host:port, or set minio.enabled" }}
{{- end }}
{{- if and .Values.postgres.enabled $secrets.databaseUrl }}
{{- fail "secrets.databaseUrl and postgres.enabled exclude each other: remove one of them" }}
{{- end }}
{{- if and .Values.minio.enabled .Values.store.endpoint }}
{{- fail "store.endpoint and minio.enabled exclude each other: remove one of them" }}
{{- end }}
{{- if and .Values.quant.minio.enabled .Values.quant.endpoint }}
{{- fail "quant.endpoint and quant.minio.enabled exclude each other: remove one of them" }}
{{- end }}
{{- if and (eq .Values.certificates.issuer "cert-manager") (not .Values.certificates.issuerRef.name) }}
{{- fail "certificates.issuerRef.name is missing: name an issuer of cert-manager that is for this mesh only" }}
{{- end }}
{{- if and .Values.quant.enabled (eq .Values.quant.engine "argo") (not .Values.quant.argo.image) }}
{{- fail "quant.argo.image is missing: name the image of the workflows, llamesh with the extra `quant`" }}
{{- end }}
{{- $own := include "llamesh.ownSettings" . | fromYaml }}
{{- range $name, $_ := .Values.settings }}
{{- if hasKey $own $name }}
{{- fail (printf "settings.%s is set by the chart itself: remove it, and use the value of the chart (values.yaml)" $name) }}
{{- end }}
{{- end }}
{{- end }}
