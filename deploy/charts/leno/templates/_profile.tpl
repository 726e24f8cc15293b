{{- /*
Puts the defaults, what the profile and the platform say, and what the user says together as .Values, in
this order. Helm has merged the first and the last already when a template runs; therefore values.yaml
keeps the defaults apart, under a key of their own. Every template begins with this; the first does it.
*/ -}}
{{- define "leno.merge" -}}
{{- $defaults := .Values._internal_defaults_do_not_set }}
{{- if $defaults }}
{{- $given := omit .Values "_internal_defaults_do_not_set" | deepCopy }}
{{- $global := $given.global | default dict }}
{{- $profile := dict }}
{{- with (coalesce $given.profile $global.profile) }}
{{- $text := $.Files.Get (printf "files/profile-%s.yaml" .) }}
{{- if not $text }}
{{- fail (printf "unknown profile %q" .) }}
{{- end }}
{{- $profile = mergeOverwrite $profile ($text | fromYaml) }}
{{- end }}
{{- with (coalesce $given.platform $global.platform) }}
{{- $text := $.Files.Get (printf "files/profile-platform-%s.yaml" .) }}
{{- if not $text }}
{{- fail (printf "unknown platform %q" .) }}
{{- end }}
{{- $profile = mergeOverwrite $profile ($text | fromYaml) }}
{{- end }}
{{- /* What is in the section "pilot" is meant for the top level. */ -}}
{{- $profile = mergeOverwrite (omit $profile "pilot") ($profile.pilot | default dict) }}
{{- $given = mergeOverwrite (omit $given "pilot") ($given.pilot | default dict) }}
{{- $_ := set . "Values" (mergeOverwrite (deepCopy $defaults) $profile $given) }}
{{- end }}
{{- end -}}
