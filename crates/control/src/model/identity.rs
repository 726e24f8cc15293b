//! Who somebody is: service accounts, and the two ways in which they are written: as SPIFFE identities
//! in certificates, and as users of Kubernetes in tokens.

use std::fmt;

use leno_tls::issue::SpiffeId;

/// What all SPIFFE identities begin with.
pub(crate) const SPIFFE: &str = "spiffe://";

/// The trust domain of a mesh that does not say what it is called.
pub(crate) const TRUST_DOMAIN: &str = "cluster.local";

/// What the users begin with that service accounts are to Kubernetes.
const USER: &str = "system:serviceaccount:";

/// A service account.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Account {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Account {
    /// Whom a SPIFFE identity names: `spiffe://DOMAIN/ns/NAMESPACE/sa/NAME`, and nothing before, between
    /// or behind that.
    pub(crate) fn of_identity(identity: &str) -> Option<Account> {
        let identity = SpiffeId::parse(identity).ok()?;
        let (namespace, name) = identity.account()?;
        Account::new(namespace, name)
    }

    /// Whom the name of a user of Kubernetes names: `system:serviceaccount:NAMESPACE:NAME`.
    pub(crate) fn of_user(user: &str) -> Option<Account> {
        let (namespace, name) = user.strip_prefix(USER)?.split_once(':')?;
        Account::new(namespace, name).filter(|_| !name.contains(':'))
    }

    fn new(namespace: &str, name: &str) -> Option<Account> {
        (!namespace.is_empty() && !name.is_empty())
            .then(|| Account { namespace: namespace.to_owned(), name: name.to_owned() })
    }

    /// Its SPIFFE identity in a trust domain.
    pub(crate) fn identity(&self, domain: &str) -> String {
        identity(domain, &self.namespace, &self.name)
    }

    /// The user that it is to Kubernetes.
    pub(crate) fn user(&self) -> String {
        format!("{USER}{}:{}", self.namespace, self.name)
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The SPIFFE identity of a service account.
pub(crate) fn identity(domain: &str, namespace: &str, account: &str) -> String {
    format!("{SPIFFE}{domain}/ns/{namespace}/sa/{account}")
}

#[cfg(test)]
mod tests {
    use super::Account;

    #[test]
    fn whom_identities_and_users_name() {
        for (identity, expected) in [
            ("spiffe://x/ns/a/sa/b", Some("a/b")),
            ("spiffe://x/ns/a/sa/b/more", None),
            ("spiffe://x/ns/a/sa/", None),
            ("spiffe://x/ns//sa/b", None),
            ("spiffe://x/sa/b/ns/a", None),
            ("spiffe://x/more/ns/a/sa/b", None),
            ("spiffe:///ns/a/sa/b", None),
            ("SPIFFE://x/ns/a/sa/b", None),
            ("spiffe://X/ns/a/sa/b", None),
            ("spiffe://x:1/ns/a/sa/b", None),
            ("spiffe://x/ns/../sa/b", None),
            ("spiffe://x/ns/a/sa/b,c", None),
            ("x/ns/a/sa/b", None),
            ("", None),
        ] {
            let found = Account::of_identity(identity);
            assert_eq!(found.as_ref().map(ToString::to_string).as_deref(), expected, "{identity}");
            if let Some(account) = found {
                assert_eq!(account.identity("x"), identity);
                assert_eq!(Account::of_user(&account.user()), Some(account));
            }
        }
        for (user, expected) in [
            ("system:serviceaccount:a:b", Some("a/b")),
            ("system:serviceaccount:a:b:c", None),
            ("system:serviceaccount::b", None),
            ("system:serviceaccount:a:", None),
            ("system:serviceaccounts:a:b", None),
            ("system:node:a", None),
        ] {
            assert_eq!(Account::of_user(user).map(|it| it.to_string()).as_deref(), expected, "{user}");
        }
    }
}
