//! What the recorded corpus (`tests/corpus.rs`) cannot say: bounds, and our own messages.

use std::sync::Arc;

use serde_json::json;

use crate::{Functions, Limits, Numbers, Templates};

fn render(text: &str, limits: Limits) -> Result<String, String> {
    let mut templates = Templates::new(Arc::new(Functions::helm()));
    templates.add("t", text).map_err(|error| error.to_string())?;
    let heap = limits.heap();
    let dot = heap.json(&json!({"x": "hello", "l": [1, 2, 3]}), Numbers::Natural)?;
    templates.render(&heap, "t", &dot).map_err(|error| error.to_string())
}

#[track_caller]
fn fails(text: &str, message: &str) {
    let error = render(text, Limits { steps: 100_000, bytes: 1 << 20 }).expect_err(text);
    assert!(error.contains(message), "{text}: {error}");
}

#[test]
fn what_users_write_is_bounded() {
    fails("{{ range until 1000000 }}{{ end }}", "too many steps");
    fails("{{ range 100000000 }}{{ end }}", "too many steps");
    fails("{{ repeat 1000000000 \"x\" }}", "too much text");
    fails("{{ $s := \"xxxxxxxx\" }}{{ range 60 }}{{ $s = cat $s $s }}{{ end }}", "too much text");
    fails(
        "{{ define \"r\" }}{{ template \"r\" . }}{{ end }}{{ template \"r\" . }}",
        "maximum template depth",
    );
    fails("{{ define \"r\" }}{{ include \"r\" . }}{{ end }}{{ include \"r\" . }}", "maximum template depth");
    fails("{{ $t := \"{{ tpl .t . }}\" }}{{ tpl $t (dict \"t\" $t) }}", "maximum template depth");
    fails("{{ printf \"%999999999d\" 1 }}", "width too large");
    fails("{{ indent 100000000 \"x\" }}", "too much text");
    fails(&"{{ if true }}".repeat(1000), "nested too deep");
    fails(&format!("{{{{ {}1{} }}}}", "(".repeat(500), ")".repeat(500)), "nested too deep");
    fails("{{ mustRegexMatch \"(a{1000}){1000}\" \"a\" }}", "error parsing regexp");
}

#[test]
fn values_that_contain_themselves_or_are_very_deep_do_no_harm() {
    fails("{{ $d := dict }}{{ $_ := set $d \"d\" $d }}{{ toYaml $d }}", "nested deeper");
    fails("{{ $d := dict }}{{ $_ := set $d \"d\" $d }}{{ $d }}", "nested deeper");
    fails("{{ $d := dict }}{{ $_ := set $d \"d\" $d }}{{ deepCopy $d }}", "nested deeper");
    fails("{{ $l := list }}{{ range 5000 }}{{ $l = list $l }}{{ end }}", "nested deeper");
    // A long chain of maps is made and taken down again.
    let text = "{{ $d := dict }}{{ range 5000 }}{{ $n := dict \"d\" $d }}{{ $d = $n }}{{ end }}ok";
    assert_eq!(render(text, Limits::default()), Ok("ok".to_owned()));
}

#[test]
fn errors_say_the_place() {
    fails(
        "a\nb {{ fail \"why\" }}",
        "template: t:2:5: executing \"t\" at <fail \"why\">: error calling fail: why",
    );
    fails("{{ .x.y }}", "template: t:1:3: executing \"t\" at <.x.y>: can't evaluate field y in type string");
    fails("x\n\n{{ nope }}", "template: t:3:3: function \"nope\" not defined");
    fails("{{ if .x }}", "unexpected EOF");
}
