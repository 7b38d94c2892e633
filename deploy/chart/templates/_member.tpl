{{/*
A Deployment of one member or of Envoy. Arguments: root, name, command, secrets (settings taken from the Secret), ports, and optional
strategy, serviceAccount, front (the keys of the front door's certificate that it may read), homeClaim, autoscaled.
Each pod mounts the Secret of its own identity and no other.
*/}}
{{- define "llamesh.member" -}}
{{- $root := .root }}
{{- $values := $root.Values }}
{{- $own := get $values .name }}
{{- $ports := include "llamesh.ports" $root | fromYaml }}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: llamesh-{{ .name }}
  labels: {{- include "llamesh.objectLabels" . | nindent 4 }}
spec:
  {{- if .autoscaled }}
  {{- include "llamesh.autoscaledReplicas" . | nindent 2 }}
  {{- else }}
  replicas: {{ $own.replicas | default 1 | int }}
  {{- end }}
  selector:
    matchLabels: {{- include "llamesh.selector" . | nindent 6 }}
  revisionHistoryLimit: 3
  {{- if .homeClaim }}
  # Its volume, and its lease in the database, have one owner.
  strategy: {type: Recreate}
  {{- else }}
  # The next pod answers before the earlier one goes.
  strategy:
    type: RollingUpdate
    rollingUpdate: {maxSurge: 1, maxUnavailable: 0}
  {{- end }}
  template:
    metadata:
      labels: {{- include "llamesh.labels" . | nindent 8 }}
      annotations:
        # Pods read settings when they start: a change of them is a change of the pods.
        checksum/settings: {{ include "llamesh.settingsChecksum" $root }}
        {{- if and .secrets (not $values.secrets.existing) }}
        checksum/secrets: {{ include "llamesh.secretData" $root | fromYaml | toJson | sha256sum }}
        {{- end }}
    spec:
      {{- with .serviceAccount }}
      serviceAccountName: {{ . }}
      {{- end }}
      automountServiceAccountToken: {{ if .serviceAccount }}true{{ else }}false{{ end }}
      {{- include "llamesh.placement" $root | nindent 6 }}
      # preStop, the drain, and the end of the process.
      terminationGracePeriodSeconds: {{ add 5 ($values.drainSeconds | int) 15 }}
      securityContext: {{- include "llamesh.podSecurity" 1000 | nindent 8 }}
      containers:
      - name: {{ .name }}
        image: {{ include "llamesh.image" $root | quote }}
        imagePullPolicy: {{ $values.image.pullPolicy }}
        command: {{ toJson .command }}
        envFrom:
        - configMapRef: {name: inference-config}
        env:
        - {name: LLAMESH_HOME, value: /var/lib/llamesh/home}
        - {name: HOME, value: /tmp}
        - {name: TMPDIR, value: /tmp}
        {{- range .secrets }}
        - {name: {{ . }}, valueFrom: {secretKeyRef: {name: {{ include "llamesh.secret" $root }}, key: {{ . }}, optional: {{ not (has . (list "JWT_SECRET" "DATABASE_URL" "LLAMESH_ADMIN_PASSWORD")) }}}}}
        {{- end }}
        ports:
        {{- range $name, $port := .ports }}
        - {name: {{ $name }}, containerPort: {{ $port | int }}}
        {{- end }}
        {{- if eq .name "envoy" }}
        # Envoy listens when the controller has configured it. That it is live, its supervisor sees to.
        readinessProbe: {tcpSocket: {port: gateway}, periodSeconds: 2, timeoutSeconds: 5, failureThreshold: 3}
        {{- else }}
        - {name: probe, containerPort: {{ get $ports "probe" | int }}}
        # A start may migrate a database.
        startupProbe: {grpc: {port: {{ get $ports "probe" | int }}, service: live}, periodSeconds: 2, timeoutSeconds: 5, failureThreshold: 150}
        livenessProbe: {grpc: {port: {{ get $ports "probe" | int }}, service: live}, periodSeconds: 5, timeoutSeconds: 5, failureThreshold: 4}
        readinessProbe: {grpc: {port: {{ get $ports "probe" | int }}}, periodSeconds: 2, timeoutSeconds: 5, failureThreshold: 3}
        {{- end }}
        # Callers open no connections to it any more before it drains.
        lifecycle: {preStop: {sleep: {seconds: 5}}}
        resources: {{- toYaml $own.resources | nindent 10 }}
        securityContext: {{- include "llamesh.containerSecurity" $root | nindent 10 }}
        terminationMessagePolicy: FallbackToLogsOnError
        volumeMounts:
        - {name: home, mountPath: /var/lib/llamesh}
        - {name: temporary, mountPath: /tmp}
        - {name: member, mountPath: /etc/llamesh/member, readOnly: true}
        {{- if and .front $values.tls.secret }}
        - {name: front, mountPath: /etc/llamesh/front, readOnly: true}
        {{- end }}
      volumes:
      - name: home
        {{- if .homeClaim }}
        persistentVolumeClaim: {claimName: {{ .homeClaim }}}
        {{- else }}
        emptyDir: {sizeLimit: 2Gi}
        {{- end }}
      - name: temporary
        emptyDir: {sizeLimit: 2Gi}
      - name: member
        secret: {secretName: llamesh-{{ .name }}-tls, defaultMode: 0440}
      {{- if and .front $values.tls.secret }}
      - name: front
        secret:
          secretName: {{ $values.tls.secret }}
          defaultMode: 0440
          items:
          {{- range .front }}
          - {key: {{ . }}, path: {{ . }}}
          {{- end }}
      {{- end }}
{{- end }}

{{/*
Replicas of a Deployment that has an autoscaler: as many as there are, because without this field the API server would take one. Once the
autoscaler has changed the number, the field is its own and stays out: a later number of Helm would be a conflict.
*/}}
{{- define "llamesh.autoscaledReplicas" -}}
{{- $live := lookup "apps/v1" "Deployment" .root.Release.Namespace (printf "llamesh-%s" .name) }}
{{- $scaled := false }}
{{- range ($live.metadata | default dict).managedFields }}
{{- if eq (.subresource | default "") "scale" }}{{ $scaled = true }}{{ end }}
{{- end }}
{{- if not $scaled }}
{{- $own := get .root.Values .name -}}
replicas: {{ ($live.spec | default dict).replicas | default $own.autoscaling.minReplicas | int }}
{{- end }}
{{- end }}

{{/* The Service at which other members reach a member. Arguments: root, name, ports. */}}
{{- define "llamesh.memberService" -}}
apiVersion: v1
kind: Service
metadata:
  name: llamesh-{{ .name }}
  labels: {{- include "llamesh.objectLabels" . | nindent 4 }}
spec:
  selector: {{- include "llamesh.selector" . | nindent 4 }}
  ports:
  {{- range $name, $port := .ports }}
  - {name: {{ $name }}, port: {{ $port | int }}, targetPort: {{ $name }}, protocol: TCP}
  {{- end }}
{{- end }}

{{/* A node that is emptied takes one pod of a kind at a time. */}}
{{- define "llamesh.disruptionBudget" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: llamesh-{{ .name }}
  labels: {{- include "llamesh.objectLabels" . | nindent 4 }}
spec:
  maxUnavailable: 1
  selector:
    matchLabels: {{- include "llamesh.selector" . | nindent 6 }}
{{- end }}

{{- define "llamesh.settingsChecksum" -}}
{{ printf "%s%s" (include "llamesh.ownSettings" .) (toYaml .Values.settings) | sha256sum }}
{{- end }}
