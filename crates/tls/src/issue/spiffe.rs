//! SPIFFE identities (the SPIFFE-ID standard): `spiffe://TRUST-DOMAIN/PATH`.

use std::fmt;
use std::sync::Arc;

/// An identity that is well-formed, so that it can be the one name in a certificate.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId(Arc<str>);

/// Longer ones need not be understood by anybody (section 2.3).
const LONGEST: usize = 2048;

/// The longest trust domain.
const LONGEST_DOMAIN: usize = 255;

impl SpiffeId {
    /// Reads an identity.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<SpiffeId, &'static str> {
        if text.len() > LONGEST {
            return Err("it is longer than 2048 bytes");
        }
        let rest = text.strip_prefix("spiffe://").ok_or("it does not begin with spiffe://")?;
        let (domain, path) = match rest.split_once('/') {
            Some((domain, path)) => (domain, Some(path)),
            None => (rest, None),
        };
        if domain.is_empty() || domain.len() > LONGEST_DOMAIN {
            return Err("its trust domain is empty or longer than 255 bytes");
        }
        let in_domain =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
        if !domain.bytes().all(in_domain) {
            return Err("its trust domain has other characters than a-z, 0-9, '.', '-' and '_'");
        }
        let in_path = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
        for segment in path.into_iter().flat_map(|path| path.split('/')) {
            if matches!(segment, "" | "." | "..") {
                return Err("a segment of its path is empty, '.' or '..'");
            }
            if !segment.bytes().all(in_path) {
                return Err("its path has other characters than letters, digits, '.', '-' and '_'");
            }
        }
        Ok(SpiffeId(text.into()))
    }

    /// Istio's identity of a service account.
    ///
    /// # Errors
    /// What is wrong with one of the names.
    pub fn of_account(domain: &str, namespace: &str, account: &str) -> Result<SpiffeId, &'static str> {
        let id = SpiffeId::parse(&format!("spiffe://{domain}/ns/{namespace}/sa/{account}"))?;
        // Names with a slash would be more segments.
        match id.account() {
            Some(found) if found == (namespace, account) => Ok(id),
            _ => Err("the namespace or the service account is no name"),
        }
    }

    /// The whole, with its scheme.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The trust domain.
    pub fn domain(&self) -> &str {
        let rest = self.0.strip_prefix("spiffe://").unwrap_or_default();
        rest.split_once('/').map_or(rest, |(domain, _)| domain)
    }

    /// Namespace and service account, if it is an identity as Istio makes them.
    pub fn account(&self) -> Option<(&str, &str)> {
        let mut parts = self.0.strip_prefix("spiffe://")?.split('/').skip(1);
        match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("ns"), Some(namespace), Some("sa"), Some(account), None) => Some((namespace, account)),
            _ => None,
        }
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::SpiffeId;

    #[test]
    fn identities() {
        for (text, expected) in [
            ("spiffe://cluster.local/ns/a/sa/b", Ok(Some(("a", "b")))),
            ("spiffe://cluster.local", Ok(None)),
            ("spiffe://cluster.local/ns/a/sa/b/c", Ok(None)),
            ("spiffe://d/A_b-c.1", Ok(None)),
            ("SPIFFE://d/a", Err("does not begin")),
            ("https://d/a", Err("does not begin")),
            ("spiffe:///a", Err("empty or longer")),
            ("spiffe://D/a", Err("other characters")),
            ("spiffe://d:1/a", Err("other characters")),
            ("spiffe://u@d/a", Err("other characters")),
            ("spiffe://d/", Err("a segment")),
            ("spiffe://d//a", Err("a segment")),
            ("spiffe://d/a/../b", Err("a segment")),
            ("spiffe://d/a?b", Err("other characters")),
            ("spiffe://d/a#b", Err("other characters")),
            ("spiffe://d/%61", Err("other characters")),
            ("spiffe://d/a,spiffe://d/b", Err("other characters")),
            ("spiffe://d/*", Err("other characters")),
            ("spiffe://d/a\0", Err("other characters")),
            ("spiffe://d/ä", Err("other characters")),
            ("", Err("does not begin")),
        ] {
            match (SpiffeId::parse(text), expected) {
                (Ok(id), Ok(account)) => assert_eq!(id.account(), account, "{text}"),
                (Err(words), Err(expected)) => assert!(words.contains(expected), "{text}: {words}"),
                (found, _) => panic!("{text}: {found:?}"),
            }
        }
        assert!(SpiffeId::parse(&format!("spiffe://{}/a", "d".repeat(256))).is_err());
        assert!(SpiffeId::parse(&format!("spiffe://d/{}", "a".repeat(2048))).is_err());
        assert_eq!(SpiffeId::parse("spiffe://d/a").map(|id| id.domain().to_owned()), Ok("d".to_owned()));
    }

    #[test]
    fn accounts_cannot_smuggle_segments() {
        for (domain, namespace, account, good) in [
            ("d", "a", "b", true),
            ("d", "a/sa/b", "c", false),
            ("d/ns/x", "a", "b", false),
            ("d", "a", "b/c", false),
            ("d", "a", "", false),
            ("d", "a", "b,c", false),
        ] {
            let found = SpiffeId::of_account(domain, namespace, account);
            assert_eq!(found.is_ok(), good, "{domain} {namespace} {account}: {found:?}");
        }
    }
}
