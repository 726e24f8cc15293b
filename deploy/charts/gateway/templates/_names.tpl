{{- define "gateway.name" -}}
{{- .Values.name | default .Release.Name -}}
{{- end -}}

{{- define "gateway.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "gateway.name" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{- /* By which Gateways and the Service select its Pods. */ -}}
{{- define "gateway.selectorLabels" -}}
app: {{ .Values.labels.app | default (include "gateway.name" .) | quote }}
istio: {{ .Values.labels.istio | default (include "gateway.name" . | trimPrefix "istio-") | quote }}
{{- end -}}

{{- define "gateway.labels" -}}
{{ include "gateway.selectorLabels" . }}
{{- range $name, $value := omit .Values.labels "app" "istio" }}
{{ $name | quote }}: {{ $value | quote }}
{{- end }}
app.kubernetes.io/name: {{ include "gateway.name" . }}
{{ include "leno.labels" . }}
{{- end -}}

{{- /* Labels of its objects, but not of its Pods. */ -}}
{{- define "gateway.owned" -}}
{{ include "gateway.labels" . }}
release: {{ .Release.Name }}
{{- if .Values.component }}
operator.istio.io/component: {{ .Values.component }}
install.operator.istio.io/owning-resource: {{ .Values.ownerName | default "unknown" | quote }}
istio.io/rev: {{ .Values.revision | default "default" | quote }}
{{- end }}
{{- end -}}
