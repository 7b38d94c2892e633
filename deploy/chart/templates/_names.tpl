{{/* Names and texts that several templates share. */}}

{{- define "llamesh.labels" -}}
app: {{ .name }}
app.kubernetes.io/name: llamesh-{{ .name }}
app.kubernetes.io/part-of: llamesh
{{- end }}

{{/* Labels of an object of the release: those of its pods, and the ones that say where it comes from. */}}
{{- define "llamesh.objectLabels" -}}
{{ include "llamesh.labels" . }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "llamesh.selector" -}}
app.kubernetes.io/name: llamesh-{{ .name }}
app.kubernetes.io/part-of: llamesh
{{- end }}

{{- define "llamesh.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "llamesh.publicHost" -}}
{{ .Values.publicHost | default (printf "llamesh.%s.svc" .Release.Namespace) }}
{{- end }}

{{/* JSON list in an object, because a template returns text only. */}}
{{- define "llamesh.namespaces" -}}
{{ dict "names" (.Values.allowedNamespaces | default (list .Release.Namespace)) | toJson }}
{{- end }}

{{/* Members with an identity of their own. */}}
{{- define "llamesh.members" -}}
{{ $optional := ternary (list "quant") (list) .Values.quant.enabled -}}
{{ dict "names" (concat (list "gateway" "contract" "download" "controller") $optional (list "envoy")) | toJson }}
{{- end }}

{{- define "llamesh.secret" -}}
{{ .Values.secrets.existing | default "inference-secrets" }}
{{- end }}

{{- define "llamesh.storeEndpoint" -}}
{{ if .Values.minio.enabled }}minio.{{ .Release.Namespace }}.svc:9000{{ else }}{{ .Values.store.endpoint }}{{ end }}
{{- end }}

{{- define "llamesh.quantEndpoint" -}}
{{ if .Values.quant.minio.enabled }}quant-minio.{{ .Release.Namespace }}.svc:9000{{ else }}{{ .Values.quant.endpoint }}{{ end }}
{{- end }}

{{/* Ports of members on TCP, and of the plain health that the kubelet asks. */}}
{{- define "llamesh.ports" -}}
{"gateway": 9200, "contract": 9201, "download": 9202, "controller": 9203, "waker": 9204, "quant": 9205, "probe": 9210}
{{- end }}

{{/* Ports of Envoy. */}}
{{- define "llamesh.publicPorts" -}}
{{ $quant := ternary (dict "quant" 8300) (dict) .Values.quant.enabled -}}
{{ merge (dict "inference" 8080 "gateway" 8200 "contract" 8201 "download" 8202) $quant | toJson }}
{{- end }}

{{/* Who calls a member, as in llamesh/kit/member_calls.py; tests/unit/test_chart_follows_the_code.py compares. */}}
{{- define "llamesh.callers" -}}
gateway: [envoy, contract, download, controller, quant]
contract: [envoy, gateway, download, controller, quant]
download: [envoy, gateway, contract, controller, quant]
controller: [envoy, gateway, contract, download]
quant: [envoy, gateway, download]
{{- end }}

{{/* Security of all pods: the Pod Security Standard "restricted". */}}
{{- define "llamesh.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "llamesh.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Where pods run, and what pulls their images. */}}
{{- define "llamesh.placement" -}}
enableServiceLinks: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
- {name: {{ . | quote }}}
{{- end }}
{{- end }}
{{- with .Values.pods.nodeSelector }}
nodeSelector: {{ toJson . }}
{{- end }}
{{- with .Values.pods.tolerations }}
tolerations: {{ toJson . }}
{{- end }}
{{- with .Values.pods.affinity }}
affinity: {{ toJson . }}
{{- end }}
{{- with .Values.pods.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- end }}
