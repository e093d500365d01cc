{{- define "fdtracker.selector" -}}
app.kubernetes.io/name: fdtracker
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "fdtracker.labels" -}}
{{ include "fdtracker.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}
