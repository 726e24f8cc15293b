//! What a request's path and query name.

use super::status::Failure;

/// Where a request goes among resources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ResourcePath {
    pub(super) group: String,
    pub(super) version: String,
    /// Empty for resources of the cluster and for all namespaces.
    pub(super) namespace: String,
    pub(super) plural: String,
    /// Empty for the whole collection.
    pub(super) name: String,
    pub(super) subresource: String,
}

impl ResourcePath {
    /// Reads a path; `None` if it is not one of resources.
    pub(super) fn parse(path: &str) -> Option<ResourcePath> {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let (group, version, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return None,
        };
        let (namespace, rest) = match rest {
            // A namespace itself, or something of it.
            ["namespaces"] | ["namespaces", _] | ["namespaces", _, "status" | "finalize"] => ("", rest),
            ["namespaces", namespace, rest @ ..] => (*namespace, rest),
            rest => ("", rest),
        };
        let (plural, name, subresource) = match rest {
            [plural] => (*plural, "", ""),
            [plural, name] => (*plural, *name, ""),
            [plural, name, subresource] => (*plural, *name, *subresource),
            _ => return None,
        };
        let [group, version, namespace, plural, name, subresource] =
            [group, version, namespace, plural, name, subresource].map(decode);
        Some(ResourcePath { group, version, namespace, plural, name, subresource })
    }
}

/// The parameters of a query.
#[derive(Clone, Debug, Default)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn parse(text: &str) -> Query {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        Query(pairs.map(|(key, value)| (decode(key), decode(&value.replace('+', " ")))).collect())
    }

    /// A parameter; empty if it is not given.
    pub(super) fn text(&self, name: &str) -> &str {
        self.0.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }

    pub(super) fn flag(&self, name: &str) -> bool {
        matches!(self.text(name), "1" | "true" | "True" | "t" | "T" | "TRUE")
    }

    /// A number; `None` if it is not given.
    ///
    /// # Errors
    /// If it is not a number.
    pub(super) fn number(&self, name: &str) -> Result<Option<u64>, Failure> {
        match self.text(name) {
            "" => Ok(None),
            text => {
                text.parse().map(Some).map_err(|_| Failure::bad_request(format!("invalid {name}: {text:?}")))
            }
        }
    }
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let mut ahead = rest.clone();
        let hex = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
        match (byte, hex(ahead.next()), hex(ahead.next())) {
            (b'%', Some(high), Some(low)) => {
                bytes.push(u8::try_from(high * 16 + low).unwrap_or_default());
                rest = ahead;
            }
            _ => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::{Query, ResourcePath};

    #[test]
    fn paths() {
        for (path, expected) in [
            ("/api/v1/pods", Some(["", "v1", "", "pods", "", ""])),
            ("/api/v1/namespaces", Some(["", "v1", "", "namespaces", "", ""])),
            ("/api/v1/namespaces/a", Some(["", "v1", "", "namespaces", "a", ""])),
            ("/api/v1/namespaces/a/status", Some(["", "v1", "", "namespaces", "a", "status"])),
            ("/api/v1/namespaces/a/pods", Some(["", "v1", "a", "pods", "", ""])),
            (
                "/apis/apps/v1/namespaces/a/deployments/x/scale",
                Some(["apps", "v1", "a", "deployments", "x", "scale"]),
            ),
            ("/apis/apps/v1", None),
            ("/version", None),
        ] {
            let found = ResourcePath::parse(path);
            let expected = expected.map(|parts| {
                let [group, version, namespace, plural, name, subresource] = parts.map(str::to_owned);
                ResourcePath { group, version, namespace, plural, name, subresource }
            });
            assert_eq!(found, expected, "{path}");
        }
    }

    #[test]
    fn queries() {
        let query = Query::parse("labelSelector=a%3Db%2Cc&watch=true&limit=5&x");
        assert_eq!(query.text("labelSelector"), "a=b,c");
        assert!(query.flag("watch") && !query.flag("x"));
        assert_eq!(query.number("limit").unwrap(), Some(5));
        assert!(query.number("watch").is_err());
    }
}
