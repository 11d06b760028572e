{{/* Names of what is in the release's namespace are fixed, as those are that the operator gives: a
     second release in it is refused by Helm. What has no namespace carries the namespace's name,
     unless that is the usual one, so that releases in several namespaces do not meet. */}}
{{- define "trafficmirror.clusterName" -}}
{{- $namespace := .Release.Namespace -}}
{{- if eq $namespace "trafficmirror" -}}
trafficmirror
{{- else if le (len $namespace) 41 -}}
trafficmirror-{{ $namespace }}
{{- else -}}
{{- /* It is part of a Service's name, which has 63 characters at most. */ -}}
trafficmirror-{{ trunc 31 $namespace }}-{{ sha256sum $namespace | trunc 8 }}
{{- end -}}
{{- end -}}

{{/* Of the MutatingWebhookConfiguration and of its Service, too: --webhook names both. */}}
{{- define "trafficmirror.webhook" -}}
{{ include "trafficmirror.clusterName" . }}-webhook
{{- end -}}

{{/* The name is what the NetworkPolicies of intercepts let in. */}}
{{- define "trafficmirror.selectorLabels" -}}
app.kubernetes.io/name: trafficmirror-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "trafficmirror.commonLabels" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: trafficmirror
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "trafficmirror.labels" -}}
{{ include "trafficmirror.selectorLabels" . }}
{{ include "trafficmirror.commonLabels" . }}
{{- end -}}

{{/* (list . "operator"): an image's whole name. */}}
{{- define "trafficmirror.image" -}}
{{- $images := (index . 0).Values.images -}}
{{- $image := get $images (index . 1) -}}
{{- with $images.registry }}{{ trimSuffix "/" . }}/{{ end -}}
{{ $image.repository }}:{{ $image.tag | default $images.tag | default (index . 0).Chart.AppVersion }}
{{- end -}}

{{- define "trafficmirror.securityContext" -}}
runAsNonRoot: true
runAsUser: 65532
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* Rules for what is in namespaces with mirrors or shadows. */}}
{{- define "trafficmirror.mirrorRules" -}}
- apiGroups: [trafficmirror.dev]
  resources: [trafficmirrors]
  verbs: [list, watch, patch]  # patch: the finalizer
- apiGroups: [trafficmirror.dev]
  resources: [trafficmirrors/status]
  verbs: [patch]
# What mirrors are about.
- apiGroups: [""]
  resources: [endpoints]
  verbs: [list, watch, create, patch, delete]  # its own: where intercepts beside the shadow are
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, patch]  # patch: an annotation that makes kubelets look at a ConfigMap
- apiGroups: [""]
  resources: [pods/ephemeralcontainers]
  verbs: [patch]
# What is made for one. Of Secrets and the like only those are read that carry the operator's
# label.
- apiGroups: [""]
  resources: [services, configmaps, secrets, serviceaccounts]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [events]
  verbs: [create, patch]
{{- end -}}

{{- define "trafficmirror.subjects" -}}
subjects:
  - kind: ServiceAccount
    name: trafficmirror-operator
    namespace: {{ .Release.Namespace }}
{{- end -}}
