//! `envoy.filters.http.csrf`.

use serde_json::{Value, json};

use crate::{Suite, compare, filter, router, routes};

#[test]
fn origins() {
    let share = |numerator: u32| json!({"default_value": {"numerator": numerator}});
    let listener = |config: Value| {
        let mut own = json!({"filter_enabled": share(100), "additional_origins": [{"exact": "own.test"}]});
        own["@type"] = "type.googleapis.com/envoy.extensions.filters.http.csrf.v3.CsrfPolicy".into();
        json!({
            "route_config": routes(&json!([
                {"match": {"prefix": "/own"}, "route": {"cluster": "up"}, "typed_per_filter_config": {"csrf": own}},
                {"match": {"prefix": "/"}, "route": {"cluster": "up"}},
            ])),
            "http_filters": [filter("csrf", "csrf.v3.CsrfPolicy", config), router()],
        })
    };
    let mut suite = Suite {
        listeners: vec![
            (
                "on",
                listener(
                    json!({"filter_enabled": share(100), "additional_origins": [{"suffix": ".b.test"}]}),
                ),
            ),
            ("off", listener(json!({"filter_enabled": share(0)}))),
            ("shadow", listener(json!({"filter_enabled": share(0), "shadow_enabled": share(100)}))),
        ],
        services: Vec::new(),
        grpc: Vec::new(),
        extra: Vec::new(),
        node: json!({}),
        log: "-",
        stats: &["csrf"],
        requests: Vec::new(),
    };
    let origins: [&[(&str, &str)]; 8] = [
        &[],
        &[("origin", "http://a.test")],
        &[("origin", "https://a.test:80")],
        &[("origin", "null")],
        &[("origin", "null"), ("referer", "http://a.test/x")],
        &[("referer", "http://x.b.test/?a")],
        &[("origin", "http://own.test")],
        &[("origin", "a.test")],
    ];
    for listener in ["on", "off", "shadow"] {
        for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
            for origin in origins {
                suite.ask(listener, &format!("{method} /"), origin, "");
                suite.ask(listener, &format!("{method} /own"), origin, "");
            }
        }
    }
    compare(&suite);
}
