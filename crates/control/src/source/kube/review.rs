//! What the API server is asked about others: whether a service account may read Secrets, and whose a
//! token is.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::Method;
use leno_base::rng::Rng;
use leno_xds::server::listen::Pod;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::Cluster;
use super::client::{Api, Fault};
use crate::model::identity::Account;
use crate::push::clearance::Verdict;

/// How many questions are open at a time.
const OPEN: usize = 16;

/// How often a question is asked in a row before it is said that there is no answer.
const TRIES: usize = 4;

/// The group that all service accounts are in.
const SERVICE_ACCOUNTS: &str = "system:serviceaccounts";

/// The part of answers that matters.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Review<S> {
    status: S,
}

/// `SubjectAccessReviewStatus`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Access {
    allowed: bool,
}

/// `TokenReviewStatus`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Token {
    authenticated: bool,
    error: String,
    user: User,
    audiences: Vec<String>,
}

impl Token {
    /// Whose the token is, which was to be for one of the audiences, and to which Pod it was issued.
    fn account(self, audiences: &[String]) -> Result<(Account, Option<Pod>), String> {
        if !self.error.is_empty() {
            return Err(format!("the token was refused: {}", self.error));
        }
        if !self.authenticated {
            return Err("the token was refused".to_owned());
        }
        // An API server that looks at audiences says which of them the token is for; one that does not
        // has only found out that the token is for itself.
        if !audiences.is_empty() && !self.audiences.iter().any(|audience| audiences.contains(audience)) {
            return Err("the token is for somebody else".to_owned());
        }
        let is_account = self.user.groups.iter().any(|group| group == SERVICE_ACCOUNTS);
        let account = Account::of_user(&self.user.username).filter(|_| is_account);
        let account = account.ok_or_else(|| "the token is not a service account's".to_owned())?;
        let pod = self.user.pod(&account.namespace);
        Ok((account, pod))
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct User {
    username: String,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// The Pod that the token was issued to, if it was to one.
    fn pod(&self, namespace: &str) -> Option<Pod> {
        let first =
            |name: &str| self.extra.get(&format!("authentication.kubernetes.io/{name}"))?.first().cloned();
        Some(Pod { namespace: namespace.to_owned(), name: first("pod-name")?, uid: first("pod-uid")? })
    }
}

impl Cluster {
    /// Whose a token is that was issued for one of the audiences, and to which Pod.
    ///
    /// # Errors
    /// Why it is nobody's.
    pub(crate) async fn review_token(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<(Account, Option<Pod>), String> {
        if token.is_empty() {
            // To review it would be a request that the server cannot make sense of.
            return Err("the token was refused: it is empty".to_owned());
        }
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": { "token": token, "audiences": audiences },
        });
        let path = "/apis/authentication.k8s.io/v1/tokenreviews";
        let answer: Review<Token> = post(&self.api, path, &review).await.map_err(|fault| {
            tracing::warn!(%fault, "cannot ask the API server about a token");
            "the token cannot be reviewed now".to_owned()
        })?;
        answer.status.account(audiences)
    }

    /// Whether a service account may read the Secrets of its namespace.
    async fn may_read_secrets(&self, account: &Account) -> Result<bool, Fault> {
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {
                "user": account.user(),
                "resourceAttributes": {
                    "namespace": account.namespace, "verb": "list", "resource": "secrets",
                },
            },
        });
        let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
        let answer: Review<Access> = post(&self.api, path, &review).await?;
        Ok(answer.status.allowed)
    }

    /// Starts what finds out who may read Secrets: where to ask, and where the answers come.
    pub(crate) fn spawn_reviewer(
        &self,
        tasks: &mut JoinSet<()>,
    ) -> (mpsc::UnboundedSender<Account>, mpsc::UnboundedReceiver<(Account, Verdict)>) {
        let (ask, mut asked) = mpsc::unbounded_channel::<Account>();
        let (tell, told) = mpsc::unbounded_channel();
        let cluster = self.clone();
        tasks.spawn(async move {
            let room = Arc::new(Semaphore::new(OPEN));
            let mut rng = Rng::from_entropy();
            let mut open = JoinSet::new();
            while let Some(account) = asked.recv().await {
                while open.try_join_next().is_some() {}
                let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
                let (cluster, tell, rng) = (cluster.clone(), tell.clone(), rng.fork());
                open.spawn(async move {
                    let answer = find_out(&cluster, &account, rng).await;
                    drop(permit);
                    // Nobody may want to know any more.
                    let _ = tell.send((account, answer));
                });
            }
        });
        (ask, told)
    }
}

async fn find_out(cluster: &Cluster, account: &Account, rng: Rng) -> Verdict {
    let mut backoff = cluster.backoff(rng);
    let mut last = None;
    for _ in 0..TRIES {
        match cluster.may_read_secrets(account).await {
            Ok(true) => return Verdict::May,
            Ok(false) => return Verdict::MayNot,
            Err(fault) => last = Some(fault),
        }
        tokio::time::sleep(backoff.next_wait()).await;
    }
    // A server that serves no reviews, or none to us, answers the same tomorrow.
    let refused = last.as_ref().is_some_and(|fault| matches!(fault.code(), 403..=405));
    let fault = last.map(|fault| fault.to_string()).unwrap_or_default();
    tracing::warn!(%account, fault, "cannot ask the API server whether Secrets may be read");
    if refused { Verdict::Refused } else { Verdict::Silence }
}

async fn post<T: serde::de::DeserializeOwned>(api: &Api, path: &str, review: &Value) -> Result<T, Fault> {
    const JSON: &str = "application/json";
    let answer = api.call(Method::POST, path, JSON, JSON, review.to_string().into_bytes()).await?;
    serde_json::from_str(&answer).map_err(|error| Fault::Broken(error.to_string()))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::Token;

    #[test]
    fn whose_a_reviewed_token_is() {
        let user = json!({ "username": "system:serviceaccount:a:b", "groups": ["system:serviceaccounts"] });
        let good = json!({ "authenticated": true, "user": user, "audiences": ["istio-ca"] });
        let but = |name: &str, value: Value| {
            let mut status = good.clone();
            status[name] = value;
            status
        };
        let ours = &["istio-ca".to_owned()][..];
        for (status, audiences, expected) in [
            (good.clone(), ours, Ok("a/b")),
            (good.clone(), &[], Ok("a/b")),
            (but("audiences", json!(["https://kubernetes"])), ours, Err("for somebody else")),
            // An API server that knows of no audiences, and so has not looked at them.
            (but("audiences", json!([])), ours, Err("for somebody else")),
            (but("audiences", json!([])), &[], Ok("a/b")),
            (but("authenticated", json!(false)), ours, Err("was refused")),
            (but("error", json!("expired")), ours, Err("expired")),
            (but("user", json!({ "username": "system:serviceaccount:a:b" })), ours, Err("not a service")),
            (json!({}), ours, Err("was refused")),
        ] {
            let token: Token = serde_json::from_value(status.clone()).expect("a status");
            match (token.account(audiences), expected) {
                (Ok((found, _)), Ok(expected)) => assert_eq!(found.to_string(), expected),
                (Err(words), Err(expected)) => assert!(words.contains(expected), "{words}"),
                (found, expected) => panic!("{status}: {found:?}, not {expected:?}"),
            }
        }
    }
}
