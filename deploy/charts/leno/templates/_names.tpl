{{- /* The suffix of names of what belongs to one of several control planes. */ -}}
{{- define "leno.suffix" -}}
{{- with .Values.revision }}-{{ . }}{{ end -}}
{{- end -}}

{{- define "leno.revision" -}}
{{- .Values.revision | default "default" -}}
{{- end -}}

{{- /* Labels of what is of this control plane. */ -}}
{{- define "leno.owned" -}}
app: istiod
istio.io/rev: {{ include "leno.revision" . | quote }}
install.operator.istio.io/owning-resource: {{ .Values.ownerName | default "unknown" | quote }}
operator.istio.io/component: Pilot
release: {{ .Release.Name }}
app.kubernetes.io/name: istiod
{{ include "leno.labels" . }}
{{- end -}}

{{- /* Which Pods are the control plane. */ -}}
{{- define "leno.selector" -}}
app: istiod
{{- if .Values.revision }}
istio.io/rev: {{ .Values.revision | quote }}
{{- else }}
istio: pilot
{{- end }}
{{- end -}}

{{- define "leno.image" -}}
{{- if contains "/" .Values.image -}}
{{ .Values.image }}
{{- else -}}
{{ .Values.hub | default .Values.global.hub }}/{{ .Values.image }}:{{ .Values.tag | default .Values.global.tag }}
{{- with .Values.variant | default .Values.global.variant }}-{{ . }}{{ end }}
{{- end -}}
{{- end -}}

{{- /* Whether objects of namespaces, or others, are to be rendered: "true" or nothing. */ -}}
{{- define "leno.namespaced" -}}
{{- if ne .Values.global.resourceScope "cluster" }}true{{ end -}}
{{- end -}}
{{- define "leno.global" -}}
{{- if ne .Values.global.resourceScope "namespace" }}true{{ end -}}
{{- end -}}
