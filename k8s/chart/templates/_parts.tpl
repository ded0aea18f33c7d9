{{- define "isthmus.check" -}}
{{- if ne .Release.Namespace "isthmus-system" }}
{{- fail (printf "isthmus runs in namespace isthmus-system, not %s: identities of the mesh name it. Install with --namespace isthmus-system" .Release.Namespace) }}
{{- end }}
{{- end }}

{{- define "isthmus.site" -}}
{{ required "site is needed: the name of this cluster among its sites, e.g. --set site=east" .Values.site }}
{{- end }}

{{- define "isthmus.trustDomain" -}}
{{ required "trustDomain is needed: the SPIFFE trust domain of this cluster, e.g. --set trustDomain=east.example" .Values.trustDomain }}
{{- end }}

{{- define "isthmus.version" -}}
{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- /* image: "isthmus-proxy" */}}
{{- define "isthmus.reference" -}}
{{ printf "%s/%s:%s" .root.Values.image.registry .image (include "isthmus.version" .root) }}
{{- end }}

{{- define "isthmus.image" -}}
image: {{ include "isthmus.reference" . | quote }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
{{- end }}

{{- define "isthmus.selector" -}}
{{ dict "app.kubernetes.io/name" "isthmus" "app.kubernetes.io/component" .component | toJson }}
{{- end }}

{{- define "isthmus.labels" -}}
{{ include "isthmus.selector" . | fromJson | merge (dict "app.kubernetes.io/version" (include "isthmus.version" .root)) | toJson }}
{{- end }}

{{- /* name, component */}}
{{- define "isthmus.metadata" -}}
{ name: {{ .name }}, namespace: {{ .root.Release.Namespace }}, labels: {{ include "isthmus.labels" . }} }
{{- end }}

{{- /* port: "8448" */}}
{{- define "isthmus.scrape" -}}
{{- if .root.Values.scrape -}}
prometheus.io/scrape: "true"
prometheus.io/port: {{ .port | quote }}
prometheus.io/path: /metrics
{{- end }}
{{- end }}

{{- /* What every pod has; user: 65532 */}}
{{- define "isthmus.pod" -}}
securityContext:
  runAsNonRoot: true
  runAsUser: {{ .user }}
  runAsGroup: {{ .user }}
  fsGroup: {{ .user }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: { type: RuntimeDefault }
{{- with .root.Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- with .root.Values.nodeSelector }}
nodeSelector: {{ toJson . }}
{{- end }}
{{- with .root.Values.tolerations }}
tolerations: {{ toJson . }}
{{- end }}
{{- end }}

{{- /* What every container has. */}}
{{- define "isthmus.container" -}}
securityContext: { allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: { drop: [ALL] } }
terminationMessagePolicy: FallbackToLogsOnError
{{- end }}

{{- /* port: a name */}}
{{- define "isthmus.probes" -}}
livenessProbe: { httpGet: { path: /live, port: {{ .port }} }, periodSeconds: 10, failureThreshold: 3 }
readinessProbe: { httpGet: { path: /ready, port: {{ .port }} }, periodSeconds: 2 }
{{- end }}

{{- /* A pod's own access to the API server, for the container that mounts it alone. */}}
{{- define "isthmus.apiAccess" -}}
projected:
  defaultMode: 0440
  sources:
  - serviceAccountToken: { path: token, expirationSeconds: 3607 }
  - configMap: { name: kube-root-ca.crt, items: [{ key: ca.crt, path: ca.crt }] }
  - downwardAPI: { items: [{ path: namespace, fieldRef: { fieldPath: metadata.namespace } }] }
{{- end }}

{{- define "isthmus.apiMount" -}}
{ name: api-access, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true }
{{- end }}

{{- /* Where a proxy proves who it is by its pod's token. */}}
{{- define "isthmus.attest" -}}
identity.attest.token=/var/run/secrets/isthmus/token;
identity.attest.roots=/var/run/isthmus-trust/roots.pem;
identity.attest.federation="isthmus.isthmus-system.svc:8446";
identity.attest.trust_domain={{ include "isthmus.trustDomain" . | quote }};
{{- end }}

{{- define "isthmus.attestMounts" -}}
- { name: token, mountPath: /var/run/secrets/isthmus, readOnly: true }
- { name: trust, mountPath: /var/run/isthmus-trust, readOnly: true }
{{- end }}

{{- define "isthmus.attestVolumes" -}}
- name: token
  projected:
    defaultMode: 0440
    sources: [{ serviceAccountToken: { audience: isthmus, expirationSeconds: 3600, path: token } }]
# The controller writes it; pods wait for it.
- name: trust
  configMap: { name: isthmus-trust }
{{- end }}

{{- /* federation.yaml */}}
{{- define "isthmus.federation" }}
{{- $inside := printf "isthmus-gateway.%s.svc:%v" .Release.Namespace .Values.gateway.service.port }}
{{- $gateway := dict "id" "gw-1" "tls" (concat (list $inside) .Values.gateway.addresses) }}
{{- if .Values.gateway.quic }}
{{- if .Values.gateway.service.separate }}
{{- $inside = printf "isthmus-gateway-quic.%s.svc:%v" .Release.Namespace .Values.gateway.service.port }}
{{- end }}
{{- $outside := .Values.gateway.quicAddresses | default .Values.gateway.addresses }}
{{- $_ := set $gateway "quic" (concat (list $inside) $outside) }}
{{- end }}
{{- $own := dict
  "listen" (printf "%s:8446" .Values.bind)
  "admin" (printf "%s:8448" .Values.bind)
  "gateways" (list $gateway)
  "gateway_users" list
  "cluster" (dict "gateway_account" "isthmus-gateway") }}
site: {{ include "isthmus.site" . | quote }}
trust_domain: {{ include "isthmus.trustDomain" . | quote }}
{{ toYaml (mergeOverwrite (deepCopy .Values.federation.config) $own) }}
{{- end }}
