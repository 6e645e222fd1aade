{{- /* The templates keep to a small part of the template language: `culvert install` renders them by itself
       (cli/install/template.py says which part), and a test holds the two equal. */ -}}
{{- define "labels" -}}
app.kubernetes.io/part-of: culvert
app.kubernetes.io/managed-by: {{ .Values.managedBy | default .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end -}}
{{- define "rootNamespace" -}}
{{ .Values.rootNamespace | default .Release.Namespace }}
{{- end -}}
{{- /* OpenShift's Multus calls the network by one file of a fixed name, which is no list: nothing can be chained there. */ -}}
{{- define "hasPlugin" -}}
{{- if and .Values.cni.enabled (or .Values.cni.confDir (ne .Values.platform "openshift")) -}}
true
{{- end -}}
{{- end -}}
{{- define "seLinuxType" -}}
{{- if .Values.node.seLinuxType -}}
{{ .Values.node.seLinuxType }}
{{- else if eq .Values.platform "openshift" -}}
spc_t
{{- end -}}
{{- end -}}
{{- define "binDir" -}}
{{- if .Values.cni.binDir -}}
{{ .Values.cni.binDir }}
{{- else if eq .Values.platform "gke" -}}
/home/kubernetes/bin
{{- else if eq .Values.platform "k3s" -}}
/var/lib/rancher/k3s/data/cni
{{- else if eq .Values.platform "openshift" -}}
/var/lib/cni/bin
{{- else -}}
/opt/cni/bin
{{- end -}}
{{- end -}}
{{- define "confDir" -}}
{{- if .Values.cni.confDir -}}
{{ .Values.cni.confDir }}
{{- else if eq .Values.platform "k3s" -}}
/var/lib/rancher/k3s/agent/etc/cni/net.d
{{- else -}}
/etc/cni/net.d
{{- end -}}
{{- end -}}
{{- /* Made for `helm uninstall` and gone with it; when the Job fails it alone stays, for its words. */ -}}
{{- define "uninstallHook" -}}
helm.sh/hook: pre-delete
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}
