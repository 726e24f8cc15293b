//! `leno pilot`, also as `pilot-discovery discovery`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use leno_control::inject::WebhookOptions;
use leno_control::server::{
    Access, CaSettings, CertProvider, Issuer, Kubernetes, Options, Secure, parse_duration,
};

use super::log_levels::{self, Scoped};
use crate::cli::Failure;

/// Run the control plane; flags have the names of pilot-discovery's
#[derive(Debug, clap::Args)]
pub(crate) struct Pilot {
    /// `discovery`, as pilot-discovery has it; the only thing to do, so it may be left out
    #[arg(value_parser = ["discovery"], hide_possible_values = true)]
    verb: Option<String>,
    /// A folder (or file) of Kubernetes and Istio YAML, watched; may be repeated. With one no cluster
    /// is read, unless --kubeconfig, --context or --registries says so
    #[arg(long = "dir", alias = "configDir", value_name = "DIR")]
    dirs: Vec<PathBuf>,
    /// The kubeconfig of the cluster to read; without one what kubectl would use, or the service
    /// account of the Pod
    #[arg(long = "kubeconfig", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig
    #[arg(long = "context", value_name = "NAME")]
    context: Option<String>,
    /// Where services are read from beside the folders: Kubernetes, or nothing
    #[arg(long = "registries", value_name = "LIST", value_delimiter = ',')]
    registries: Option<Vec<String>>,
    /// The root namespace, of the ConfigMap `istio`
    #[arg(
        short = 'n',
        long = "namespace",
        value_name = "NAME",
        env = "POD_NAMESPACE",
        default_value = "istio-system"
    )]
    namespace: String,
    /// Where proxies connect to for xDS without TLS; empty: nowhere. Who connects here is not
    /// authenticated and gets no credentials
    #[arg(long = "grpcAddr", alias = "grpc-addr", value_name = "ADDRESS", default_value = ":15010")]
    grpc_addr: String,
    /// Where proxies connect to for xDS and for certificates, with TLS; empty: nowhere. They show a
    /// certificate of the mesh (see --caCertFile) or the token of a service account. Without a certificate
    /// (--tlsCertFile) and without an authority (ROOT_CA_DIR, or a cluster) it is not served
    #[arg(
        long = "secureGRPCAddr",
        alias = "secure-grpc-addr",
        value_name = "ADDRESS",
        default_value = ":15012"
    )]
    secure_grpc_addr: String,
    #[command(flatten)]
    tls: Tls,
    /// A proxy in front of us that is believed what x-forwarded-client-cert says; may be a list
    #[arg(
        long = "trustedGatewayCIDR",
        env = "TRUSTED_GATEWAY_CIDR",
        value_name = "CIDR",
        value_delimiter = ','
    )]
    trusted_gateways: Vec<String>,
    /// Whom tokens must be for; may be a list
    #[arg(
        long = "tokenAudiences",
        env = "TOKEN_AUDIENCES",
        value_name = "NAME",
        value_delimiter = ',',
        default_value = "istio-ca"
    )]
    audiences: Vec<String>,
    /// An issuer of tokens beside the API server, as JSON: issuer, audiences, and jwks (the keys) or
    /// jwksUri (https://..., file:///PATH); without either the issuer is asked (OpenID Connect)
    #[arg(long = "jwtRule", env = "JWT_RULE", value_name = "JSON", default_value = "")]
    jwt_rule: String,
    /// The folder of join tokens (see `leno token create`), for machines without Kubernetes
    #[arg(long = "joinTokens", env = "JOIN_TOKENS", value_name = "DIR")]
    join_tokens: Option<PathBuf>,
    /// Proxies without TLS must be authenticated as well
    #[arg(long = "authenticatePlaintext", env = "XDS_AUTH_PLAINTEXT")]
    authenticates_plaintext: bool,
    /// Proxies that are not authenticated are believed to be who they say, and are given the
    /// credentials of their namespace: only where nobody else can connect, as on a machine of one's own
    #[arg(long = "trustPlaintext")]
    trusts_plaintext: bool,
    #[command(flatten)]
    keepalive: Keepalive,
    /// Where webhooks for injection and validation are served, with TLS: `:15017` if a cluster is read
    /// and there is a certificate, else nowhere; empty: nowhere
    // Deviation: with an empty address istiod serves its webhooks at --httpAddr without TLS.
    #[arg(long = "httpsAddr", alias = "https-addr", value_name = "ADDRESS")]
    https_addr: Option<String>,
    /// Write what is found wrong with objects of the cluster into their status
    #[arg(long = "writeStatus", env = "PILOT_ENABLE_ANALYSIS")]
    write_status: bool,
    /// Where /ready and /debug are served too, for readiness probes; `:8080` if a cluster is read, else
    /// nowhere. xDS is not served there, whatever --grpcAddr
    // Deviation: istiod serves it without a cluster too, and with an empty --grpcAddr xDS as well.
    #[arg(long = "httpAddr", alias = "http-addr", value_name = "ADDRESS")]
    http_addr: Option<String>,
    /// Where /ready, /debug and /metrics are served; empty: at --httpAddr only
    #[arg(
        long = "monitoringAddr",
        alias = "monitoring-addr",
        value_name = "ADDRESS",
        default_value = ":15014"
    )]
    monitoring_addr: String,
    /// Levels of the log, as `default:info,ads:debug`
    #[arg(
        long = "log_output_level",
        alias = "log-output-level",
        value_name = "LIST",
        default_value = "default:info"
    )]
    log_output_level: String,
}

/// The certificate of the port with TLS.
#[derive(Debug, clap::Args)]
struct Tls {
    /// The certificate of the port with TLS, with its chain; read again when it changes. Without one
    /// that of /var/run/secrets/istiod/tls is used, if it is there
    #[arg(long = "tlsCertFile", value_name = "FILE", requires = "key")]
    certificate: Option<PathBuf>,
    /// Its key
    #[arg(long = "tlsKeyFile", value_name = "FILE", requires = "certificate")]
    key: Option<PathBuf>,
    /// The roots that the certificates of proxies come from. Without them that of
    /// /var/run/secrets/istiod/ca is used, if it is there; else no certificates are asked for
    #[arg(long = "caCertFile", value_name = "FILE")]
    roots: Option<PathBuf>,
    /// The lowest version of TLS
    #[arg(
        long = "tls-min-version",
        value_name = "VERSION",
        default_value = "1.2",
        value_parser = ["1.2", "1.3"]
    )]
    min_version: String,
    /// Cipher suites of TLS 1.2, by their names in OpenSSL
    #[arg(long = "tls-cipher-suites", value_name = "LIST", value_delimiter = ',')]
    suites: Vec<String>,
}

/// How long connections live.
#[derive(Debug, clap::Args)]
struct Keepalive {
    /// After which silence a proxy is asked whether it is there
    #[arg(long = "keepaliveInterval", value_name = "DURATION", default_value = "30s", value_parser = duration)]
    interval: Duration,
    /// How long it has to answer
    #[arg(long = "keepaliveTimeout", value_name = "DURATION", default_value = "10s", value_parser = duration)]
    timeout: Duration,
    /// After what time a connection is ended, so that proxies spread over replicas; never, unless set
    #[arg(long = "keepaliveMaxServerConnectionAge", value_name = "DURATION", value_parser = duration)]
    most_age: Option<Duration>,
    /// The most connections; others wait
    #[arg(long = "maxConnections", value_name = "NUMBER", default_value = "100000")]
    most_connections: usize,
    /// The most connections of one address to a port for proxies; more are refused
    #[arg(
        long = "maxConnectionsPerAddress",
        env = "LENO_MAX_CONNECTIONS_PER_ADDRESS",
        value_name = "NUMBER",
        default_value = "20000"
    )]
    most_connections_of_one: usize,
    /// The most streams on a connection
    #[arg(
        long = "maxConcurrentStreams",
        env = "ISTIO_GPRC_MAXSTREAMS",
        value_name = "NUMBER",
        default_value = "100"
    )]
    most_streams: u32,
}

/// Where the probes of Istio's charts ask.
const READY_ADDRESS: &str = ":8080";

/// Where API servers ask webhooks.
const WEBHOOKS: &str = ":15017";

/// Where the certificate of istiod is mounted, as Istio's charts do it.
const TLS_FILES: [&str; 2] = ["/var/run/secrets/istiod/tls/tls.crt", "/var/run/secrets/istiod/tls/tls.key"];

/// Where the roots of the mesh are mounted.
const ROOTS: &str = "/var/run/secrets/istiod/ca/root-cert.pem";

impl Pilot {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let _ = self.verb;
        start_log(&self.log_output_level)?;
        let kubernetes = self.kubernetes()?;
        let looking = self.looking(kubernetes.is_some())?;
        let (mut access, connections) = (self.access()?, self.keepalive.options());
        access.authority = self.authority(kubernetes.is_some(), |name| std::env::var(name).ok())?;
        if !is_reachable(&access) {
            let words = "proxies cannot connect: neither --grpcAddr nor --secureGRPCAddr with --tlsCertFile or an \
                         authority";
            return Err(anyhow::anyhow!(words).into());
        }
        without_effect(&access, kubernetes.is_some(), |name| std::env::var(name).ok())?;
        let signs_own = |ca: &CaSettings| !matches!(ca.provider, CertProvider::Custom | CertProvider::None);
        let certified = access.secure.is_some() || access.authority.as_ref().is_some_and(signs_own);
        let webhooks = self.webhooks(kubernetes.is_some() && certified, |name| std::env::var(name).ok())?;
        if webhooks.is_some() && !certified {
            return Err(anyhow::anyhow!("--httpsAddr needs --tlsCertFile or an authority").into());
        }
        let mut config = leno_control::server::Config::new(self.dirs);
        if access.plaintext {
            config.grpc_addr = address("--grpcAddr", &self.grpc_addr)?;
        }
        config.webhooks = webhooks;
        config.access = access;
        config.connections = connections;
        (config.http_addr, config.second_http_addr) = looking;
        config.kubernetes = kubernetes;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        runtime
            .block_on(async {
                let mut terminate =
                    tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
                let shutdown = async move {
                    tokio::select! {
                        _ = terminate.recv() => {}
                        _ = tokio::signal::ctrl_c() => {}
                    }
                };
                leno_control::server::run(config, shutdown).await
            })
            .map_err(anyhow::Error::from)?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Pilot {
    /// Where people look, once or twice; refuses what would have no effect.
    fn looking(&self, in_cluster: bool) -> anyhow::Result<(SocketAddr, Option<SocketAddr>)> {
        let default = if in_cluster { READY_ADDRESS } else { "" };
        let second = Some(self.http_addr.as_deref().unwrap_or(default)).filter(|text| !text.is_empty());
        let second = second.map(|text| address("--httpAddr", text)).transpose()?;
        match (self.monitoring_addr.as_str(), second) {
            ("", Some(only)) => Ok((only, None)),
            ("", None) => bail!("/ready is served nowhere: neither --monitoringAddr nor --httpAddr"),
            // One port is enough for what is the same.
            (text, second) => {
                let first = address("--monitoringAddr", text)?;
                Ok((first, second.filter(|second| *second != first || first.port() == 0)))
            }
        }
    }

    /// Where webhooks are served, and for whom.
    fn webhooks(
        &self,
        by_default: bool,
        variable: impl Fn(&str) -> Option<String>,
    ) -> anyhow::Result<Option<WebhookOptions>> {
        let default = if by_default { WEBHOOKS } else { "" };
        let text = self.https_addr.as_deref().unwrap_or(default);
        if text.is_empty() {
            return Ok(None);
        }
        let native = variable("ENABLE_NATIVE_SIDECARS").unwrap_or_default();
        let native = match native.as_str() {
            "true" => Some(true),
            "false" => Some(false),
            "" | "auto" => None,
            other => bail!("ENABLE_NATIVE_SIDECARS: {other:?} is none of true, false, auto"),
        };
        // Istio's charts empty the name where others register the webhook.
        let registers = variable("INJECTION_WEBHOOK_CONFIG_NAME").is_none_or(|name| !name.is_empty());
        Ok(Some(WebhookOptions {
            address: address("--httpsAddr", text)?,
            revision: variable("REVISION")
                .filter(|name| !name.is_empty())
                .unwrap_or_else(|| "default".to_owned()),
            namespace: self.namespace.clone(),
            native,
            registers,
        }))
    }

    /// Who may connect.
    fn access(&self) -> anyhow::Result<Access> {
        let secure = self.tls.files().filter(|_| !self.secure_grpc_addr.is_empty());
        let secure = secure
            .map(|files| anyhow::Ok((address("--secureGRPCAddr", &self.secure_grpc_addr)?, files)))
            .transpose()?;
        let plaintext = !self.grpc_addr.is_empty();
        let trusted = self.trusted_gateways.iter().filter(|range| !range.is_empty());
        let trusted = trusted.map(|range| {
            range.parse().map_err(|error| anyhow::anyhow!("--trustedGatewayCIDR: {range:?}: {error}"))
        });
        let issuer = match self.jwt_rule.as_str() {
            "" => None,
            rule => Some(Issuer::parse(rule).map_err(|error| anyhow::anyhow!("--jwtRule: {error}"))?),
        };
        Ok(Access {
            plaintext,
            secure,
            authenticates_plaintext: self.authenticates_plaintext,
            believes_all: self.trusts_plaintext,
            audiences: self.audiences.clone(),
            issuer,
            // Where programs that trust the system look first.
            system_roots: std::env::var_os("SSL_CERT_FILE").filter(|path| !path.is_empty()).map(Into::into),
            join_tokens: self.join_tokens.clone(),
            trusted_proxies: trusted.collect::<anyhow::Result<_>>()?,
            authority: None,
        })
    }

    /// The certificate authority: in a cluster, or where its folder is named or has something in it.
    fn authority(
        &self,
        in_cluster: bool,
        variable: impl Fn(&str) -> Option<String>,
    ) -> anyhow::Result<Option<CaSettings>> {
        let settings = CaSettings::read(&variable).map_err(anyhow::Error::msg)?;
        if !in_cluster && settings.as_ref().is_some_and(|settings| settings.external.is_some()) {
            bail!("EXTERNAL_CA: the signers are those of a cluster, and there is none");
        }
        let wanted = settings.filter(|settings| in_cluster || settings.keeps || settings.dir.exists());
        let Some(mut settings) = wanted else { return Ok(None) };
        let signs_own = !matches!(settings.provider, CertProvider::Custom | CertProvider::None);
        // Deviation: with PILOT_CERT_PROVIDER=custom and no certificate istiod serves a port on which no handshake
        // succeeds.
        if settings.provider == CertProvider::Custom && self.tls.files().is_none() {
            bail!(
                "PILOT_CERT_PROVIDER=custom: the certificate must be given, by --tlsCertFile and --tlsKeyFile"
            );
        }
        if !self.secure_grpc_addr.is_empty() && signs_own {
            settings.address = Some(address("--secureGRPCAddr", &self.secure_grpc_addr)?);
        }
        settings.only_1_3 = self.tls.min_version == "1.3";
        settings.suites.clone_from(&self.tls.suites);
        let revision = variable("REVISION").filter(|name| !matches!(name.as_str(), "" | "default"));
        let names = ["istiod", "istiod-remote", "istio-pilot"].map(str::to_owned).into_iter();
        let names = names.chain(revision.map(|revision| format!("istiod-{revision}")));
        let names = names.map(|name| format!("{name}.{}.svc", self.namespace));
        let custom = variable("ISTIOD_CUSTOM_HOST").unwrap_or_default();
        let custom = custom.split(',').map(str::trim).filter(|host| !host.is_empty()).map(str::to_owned);
        settings.hosts = names.chain(custom).collect();
        Ok(Some(settings))
    }

    /// The cluster to read: if one is named, or asked for, or there is nothing else to read.
    fn kubernetes(&self) -> anyhow::Result<Option<Kubernetes>> {
        let mut asked = self.kubeconfig.is_some() || self.context.is_some();
        for registry in self.registries.iter().flatten().filter(|name| !name.is_empty()) {
            match registry.as_str() {
                "Kubernetes" => asked = true,
                other => bail!("--registries: {other:?} is not supported, use Kubernetes"),
            }
        }
        if !asked && (self.registries.is_some() || !self.dirs.is_empty()) {
            if self.dirs.is_empty() {
                bail!("nothing to read: neither --dir nor a registry");
            }
            return Ok(None);
        }
        Ok(Some(Kubernetes {
            kubeconfig: self.kubeconfig.clone(),
            context: self.context.clone(),
            namespace: self.namespace.clone(),
            write_status: self.write_status,
            revision: Some(std::env::var("REVISION").unwrap_or_default()),
            identity: std::env::var("POD_NAME").unwrap_or_default(),
        }))
    }
}

impl Tls {
    /// The files of the port with TLS; `None`: there are none.
    fn files(&self) -> Option<Secure> {
        let mounted = || {
            let [certificate, key] = TLS_FILES.map(PathBuf::from);
            (certificate.exists() && key.exists()).then_some((certificate, key))
        };
        let given = self.certificate.clone().zip(self.key.clone());
        let (certificate, key) = given.or_else(mounted)?;
        let mounted = || Some(PathBuf::from(ROOTS)).filter(|path| path.exists());
        Some(Secure {
            certificate,
            key,
            roots: self.roots.clone().or_else(mounted),
            only_1_3: self.min_version == "1.3",
            suites: self.suites.clone(),
        })
    }
}

impl Keepalive {
    fn options(&self) -> Options {
        Options {
            keepalive: (self.interval, self.timeout),
            most_connections: self.most_connections,
            most_connections_of_one: self.most_connections_of_one,
            most_streams: self.most_streams,
            most_age: self.most_age,
            ..Options::default()
        }
    }
}

/// A duration as Go writes it: `30s`, `1h30m`.
fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text)
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| format!("{text:?} is no duration such as 30s or 1h30m"))
}

/// Whether there is a port at all.
fn is_reachable(access: &Access) -> bool {
    let own = access.authority.as_ref().and_then(|ca| ca.address);
    access.plaintext || access.secure.is_some() || own.is_some()
}

/// Looks for what was set and has no effect with the rest; warns of what Istio's charts may set.
///
/// # Errors
/// If there is nobody who could use join tokens.
fn without_effect(
    access: &Access,
    in_cluster: bool,
    variable: impl Fn(&str) -> Option<String>,
) -> anyhow::Result<()> {
    let own = access.authority.as_ref().and_then(|ca| ca.address);
    if access.join_tokens.is_some()
        && !(access.authority.is_some() && (own.is_some() || access.secure.is_some()))
    {
        bail!(
            "--joinTokens has no effect: there is no authority to sign for who shows one (set ROOT_CA_DIR), or no \
             port with TLS (--secureGRPCAddr)"
        );
    }
    let is_set = |name: &str| variable(name).is_some_and(|value| !value.is_empty());
    if is_set("ISTIOD_CUSTOM_HOST") && (access.secure.is_some() || access.authority.is_none()) {
        tracing::warn!(
            "ISTIOD_CUSTOM_HOST has no effect: the certificate of the port with TLS is not made here"
        );
    }
    if is_set("CA_TRUSTED_NODE_ACCOUNTS") && !(in_cluster && access.authority.is_some()) {
        tracing::warn!(
            "CA_TRUSTED_NODE_ACCOUNTS has no effect without an authority in a cluster, whose Pods are known"
        );
    }
    Ok(())
}

/// An address as Go writes it: `:15010` is all addresses of the machine.
fn address(flag: &str, text: &str) -> anyhow::Result<SocketAddr> {
    let full = if text.starts_with(':') { format!("0.0.0.0{text}") } else { text.to_owned() };
    full.parse().with_context(|| format!("{flag}: {text:?} is not ADDRESS:PORT"))
}

fn start_log(levels: &str) -> anyhow::Result<()> {
    let directives = log_levels::parse(levels)?.into_iter().map(|Scoped { scope, level }| match scope {
        "default" | "all" => format!("warn,leno={level},leno_control={level},leno_xds={level}"),
        scope => format!("leno_control::{scope}={level}"),
    });
    let filter = tracing_subscriber::EnvFilter::try_new(directives.collect::<Vec<_>>().join(","))?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::{Pilot, address, is_reachable, without_effect};

    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        pilot: Pilot,
    }

    fn pilot(arguments: &[&str]) -> Result<Pilot, String> {
        let command = Command::try_parse_from([&["pilot"], arguments].concat());
        command.map(|command| command.pilot).map_err(|error| error.to_string())
    }

    #[test]
    fn where_webhooks_are_served() {
        let none = |_: &str| None;
        let of = |arguments: &[&str], by_default: bool| {
            let options = pilot(arguments)
                .and_then(|pilot| pilot.webhooks(by_default, none).map_err(|e| e.to_string()));
            options.map(|options| options.map(|options| options.address.to_string()))
        };
        assert_eq!(of(&[], false), Ok(None));
        assert_eq!(of(&[], true), Ok(Some("0.0.0.0:15017".to_owned())));
        assert_eq!(of(&["--httpsAddr="], true), Ok(None));
        assert_eq!(of(&["--httpsAddr=127.0.0.1:1"], false), Ok(Some("127.0.0.1:1".to_owned())));
        let bad = |name: &str| (name == "ENABLE_NATIVE_SIDECARS").then(|| "maybe".to_owned());
        assert!(pilot(&[]).expect("flags").webhooks(true, bad).is_err());
    }

    #[test]
    fn where_people_look() {
        for (arguments, in_cluster, expected) in [
            (&[][..], false, "0.0.0.0:15014"),
            (&[], true, "0.0.0.0:15014 0.0.0.0:8080"),
            (&["--httpAddr="], true, "0.0.0.0:15014"),
            (&["--httpAddr=127.0.0.1:1"], false, "0.0.0.0:15014 127.0.0.1:1"),
            (&["--httpAddr=:15014"], false, "0.0.0.0:15014"),
            (&["--monitoringAddr="], true, "0.0.0.0:8080"),
            (&["--monitoringAddr="], false, "/ready is served nowhere"),
            (&["--httpAddr=8080"], false, "--httpAddr: \"8080\" is not ADDRESS:PORT"),
            (&["--httpsAddr="], false, "0.0.0.0:15014"),
        ] {
            let found = match pilot(arguments).expect("good flags").looking(in_cluster) {
                Ok((first, second)) => {
                    let second = second.map(|second| format!(" {second}")).unwrap_or_default();
                    format!("{first}{second}")
                }
                Err(error) => error.to_string(),
            };
            assert!(found.starts_with(expected), "{arguments:?}: {found}");
        }
    }

    #[test]
    fn who_may_connect() {
        for (arguments, expected) in [
            (&[][..], "plaintext"),
            (&["--tlsCertFile=c", "--tlsKeyFile=k", "--caCertFile=r"], "plaintext secure 0.0.0.0:15012"),
            (
                &["--grpcAddr=", "--tlsCertFile=c", "--tlsKeyFile=k", "--secureGRPCAddr=[::1]:1"],
                "secure [::1]:1",
            ),
            (&["--tlsCertFile=c", "--tlsKeyFile=k", "--secureGRPCAddr="], "plaintext"),
            (&["--trustPlaintext"], "plaintext believed"),
            (
                &["--authenticatePlaintext", "--trustedGatewayCIDR=10.0.0.0/8,::1/128"],
                "plaintext asked 2 trusted",
            ),
            (&["--trustedGatewayCIDR=x"], "--trustedGatewayCIDR: \"x\""),
            (&["--jwtRule={}"], "--jwtRule: issuer must not be empty"),
        ] {
            let found = match pilot(arguments).expect("good flags").access() {
                Ok(access) => {
                    let secure = access.secure.map(|(address, _)| format!("secure {address}"));
                    let trusted = access.trusted_proxies.len();
                    let words = [
                        access.plaintext.then(|| "plaintext".to_owned()),
                        secure,
                        access.authenticates_plaintext.then(|| "asked".to_owned()),
                        access.believes_all.then(|| "believed".to_owned()),
                        (trusted > 0).then(|| format!("{trusted} trusted")),
                    ];
                    words.into_iter().flatten().collect::<Vec<_>>().join(" ")
                }
                Err(error) => error.to_string(),
            };
            assert!(found.starts_with(expected), "{arguments:?}: {found}");
        }
        for bad in [
            &["--tlsCertFile=c"][..],
            &["--tls-min-version=1.1"],
            &["--keepaliveTimeout=x"],
            &["--keepaliveInterval=0s"],
        ] {
            assert!(pilot(bad).is_err(), "{bad:?}");
        }
        let pilot = pilot(&["--keepaliveMaxServerConnectionAge=1h30m"]).expect("good flags");
        assert_eq!(pilot.keepalive.options().most_age.map(|age| age.as_secs()), Some(5400));
    }

    #[test]
    fn the_authority() {
        let set = |all: &'static [(&str, &str)]| {
            move |name: &str| {
                all.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            }
        };
        let plain = pilot(&["--secureGRPCAddr=[::1]:1", "--tls-min-version=1.3"]).expect("good flags");
        let nowhere: &[(&str, &str)] = &[];
        assert!(plain.authority(false, set(nowhere)).expect("fine").is_none());
        let found =
            plain.authority(true, set(&[("REVISION", "canary"), ("ISTIOD_CUSTOM_HOST", "a.b, 10.0.0.1")]));
        let found = found.expect("fine").expect("in a cluster");
        assert_eq!(found.address.map(|address| address.to_string()).as_deref(), Some("[::1]:1"));
        assert!(found.only_1_3 && !found.keeps);
        let hosts = [
            "istiod.istio-system.svc",
            "istiod-remote.istio-system.svc",
            "istio-pilot.istio-system.svc",
            "istiod-canary.istio-system.svc",
            "a.b",
            "10.0.0.1",
        ];
        assert_eq!(found.hosts, hosts);
        let found = plain.authority(false, set(&[("ROOT_CA_DIR", "/nowhere")])).expect("fine");
        assert!(found.is_some_and(|ca| ca.keeps));
        assert!(plain.authority(true, set(&[("ENABLE_CA_SERVER", "false")])).expect("fine").is_none());
        assert!(plain.authority(true, set(&[("EXTERNAL_CA", "x")])).is_err());
        let signers: &[(&str, &str)] =
            &[("EXTERNAL_CA", "ISTIOD_RA_KUBERNETES_API"), ("K8S_SIGNER", "example.com/mesh")];
        assert!(plain.authority(true, set(signers)).expect("fine").is_some_and(|ca| ca.external.is_some()));
        assert!(plain.authority(false, set(signers)).is_err(), "there is no cluster");
        assert!(plain.authority(true, set(&[("PILOT_CERT_PROVIDER", "custom")])).is_err(), "no files");
        let none = plain.authority(true, set(&[("PILOT_CERT_PROVIDER", "none")])).expect("fine");
        assert!(none.is_some_and(|ca| ca.address.is_none()), "it has no certificate");
        let mut access = pilot(&["--grpcAddr="]).expect("good flags").access().expect("fine");
        assert!(!is_reachable(&access));
        access.authority = plain.authority(true, set(nowhere)).expect("fine");
        assert!(is_reachable(&access));
        access.join_tokens = Some("tokens".into());
        assert!(without_effect(&access, false, |_| None).is_ok());
        access.authority = None;
        let error = without_effect(&access, false, |_| None).expect_err("nobody signs").to_string();
        assert!(error.contains("--joinTokens"), "{error}");
        let closed = pilot(&["--secureGRPCAddr="]).expect("good flags");
        assert!(closed.authority(true, set(nowhere)).expect("fine").is_some_and(|ca| ca.address.is_none()));
    }

    #[test]
    fn addresses() {
        for (text, expected) in [
            (":15010", Some("0.0.0.0:15010")),
            ("10.244.0.1:15010", Some("10.244.0.1:15010")),
            ("[::1]:80", Some("[::1]:80")),
            ("localhost:80", None),
            ("15010", None),
        ] {
            assert_eq!(
                address("--grpcAddr", text).ok().map(|it| it.to_string()).as_deref(),
                expected,
                "{text}"
            );
        }
    }
}
