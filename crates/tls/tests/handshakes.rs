//! Whole handshakes between contexts, in memory: resumption, and rules that look at peers.

use std::sync::Arc;
use std::time::Duration;

use leno_tls::{
    ClientSettings, Findings, Identity, NameKind, NameMatcher, Parameters, Revocations, Rule, ServerSettings,
    Source, StaplePolicy, TextMatcher, TicketKey, TicketKeys, Trust, TrustBundle, ValidationRules, Version,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, ServerConfig, ServerConnection};

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.distinguished_name.push(DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn params(names: &[SanType]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.subject_alt_names = names.to_vec();
    params.use_authority_key_identifier_extension = true;
    params
}

fn identity(issuer: &Authority, params: &CertificateParams) -> Arc<Identity> {
    let key = KeyPair::generate().unwrap();
    let chain = params.signed_by(&key, issuer).unwrap().pem();
    let source = |text: String| Source { bytes: text.into_bytes(), place: "<inline>".to_owned() };
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let identity = Identity::load(&source(chain), &source(key.serialize_pem()), None, None, &provider);
    Arc::new(identity.unwrap())
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

fn uri(name: &str) -> SanType {
    SanType::URI(name.try_into().unwrap())
}

fn bundle(authority: &Authority) -> TrustBundle {
    TrustBundle::parse(authority.pem().as_bytes()).unwrap()
}

fn trusting(authority: &Authority) -> ValidationRules {
    ValidationRules { trust: Trust::Bundle(Arc::new(bundle(authority))), ..ValidationRules::default() }
}

fn server(identity: &Arc<Identity>) -> ServerSettings {
    ServerSettings {
        parameters: Parameters::default(),
        alpn: Vec::new(),
        identities: vec![Arc::clone(identity)],
        rules: Arc::default(),
        require_client_certificate: false,
        require_name: false,
        full_scan: false,
        staple_policy: StaplePolicy::Lenient,
        tickets: TicketKeys::Automatic,
        stateful: true,
        session_timeout: Duration::from_secs(7200),
        prefer_client_suites: false,
        key_log: None,
    }
}

fn client(rules: ValidationRules) -> ClientSettings {
    ClientSettings {
        parameters: Parameters::default(),
        alpn: Vec::new(),
        identity: None,
        rules: Arc::new(rules),
        match_server_name: false,
        enforce_rsa_key_usage: true,
        max_session_keys: 4,
        key_log: None,
    }
}

/// How a handshake ended: `full`, `resumed` (or `full again`, after a retry), or which rule refused.
fn shake(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> String {
    let name = ServerName::try_from("server.test").unwrap();
    let mut client = ClientConnection::new(Arc::clone(client), name).unwrap();
    let mut server = ServerConnection::new(Arc::clone(server)).unwrap();
    let mut findings = Findings::default();
    for _ in 0..8 {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        let mut input = bytes.as_slice();
        while !input.is_empty() {
            server.read_tls(&mut input).unwrap();
            let processed = server.process_new_packets();
            findings.add(leno_tls::take_findings());
            if let Err(error) = processed {
                return refused(&findings, &error);
            }
        }
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        let mut input = bytes.as_slice();
        while !input.is_empty() {
            client.read_tls(&mut input).unwrap();
            let processed = client.process_new_packets();
            findings.add(leno_tls::take_findings());
            if let Err(error) = processed {
                return refused(&findings, &error);
            }
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking(), "it comes to an end");
    match server.handshake_kind().unwrap() {
        HandshakeKind::Resumed => "resumed",
        HandshakeKind::Full | HandshakeKind::FullWithHelloRetryRequest => "full",
    }
    .to_owned()
}

fn refused(findings: &Findings, error: &rustls::Error) -> String {
    match findings.failure.as_ref().map(|failure| &failure.rule) {
        Some(Rule::Chain) => "chain".to_owned(),
        Some(Rule::Names) => "names".to_owned(),
        Some(Rule::Pins) => "pins".to_owned(),
        Some(Rule::KeyUsage) => "key usage".to_owned(),
        None => error.to_string(),
    }
}

fn version(maximum: Version) -> Parameters {
    let mut parameters = Parameters::default();
    parameters.maximum = maximum;
    parameters
}

#[test]
fn sessions_are_resumed_by_tickets_and_from_the_store() {
    let ca = authority("ca");
    let own = identity(&ca, &params(&[dns("server.test")]));
    for maximum in [Version::Tls12, Version::Tls13] {
        let shakes = |server: ServerSettings, keys: u32| {
            let settings = ClientSettings {
                parameters: version(maximum),
                max_session_keys: keys,
                ..client(trusting(&ca))
            };
            let (client, server) = (settings.build().unwrap(), server.build().unwrap().config);
            [shake(&client, &server), shake(&client, &server), shake(&client, &server)]
        };
        assert_eq!(shakes(server(&own), 1), ["full", "resumed", "resumed"], "{maximum:?}");
        // Neither tickets nor a client that keeps them.
        assert_eq!(shakes(server(&own), 0), ["full", "full", "full"], "{maximum:?}");
        let stateful = ServerSettings { tickets: TicketKeys::None, ..server(&own) };
        let expected = if maximum == Version::Tls12 { "resumed" } else { "full" };
        assert_eq!(shakes(stateful, 1), ["full", expected, expected], "{maximum:?}");
        let never = ServerSettings { tickets: TicketKeys::None, stateful: false, ..server(&own) };
        assert_eq!(shakes(never, 1), ["full", "full", "full"], "{maximum:?}");
        // A resumed session would not say that its client was not trusted.
        let rules = ValidationRules { accept_untrusted: true, ..trusting(&ca) };
        let lax = ServerSettings { rules: Arc::new(rules), ..server(&own) };
        assert_eq!(shakes(lax, 1), ["full", "full", "full"], "{maximum:?}");
    }
}

#[test]
fn given_keys_resume_between_servers_and_over_rotation() {
    let ca = authority("ca");
    let own = identity(&ca, &params(&[dns("server.test")]));
    let key = |fill: u8| TicketKey::new(&[fill; TicketKey::LENGTH], "<inline>").unwrap();
    let with = |keys: &[TicketKey]| {
        ServerSettings { tickets: TicketKeys::Given(keys.to_vec()), ..server(&own) }.build().unwrap().config
    };
    for maximum in [Version::Tls12, Version::Tls13] {
        let settings = ClientSettings { parameters: version(maximum), ..client(trusting(&ca)) };
        let client = settings.build().unwrap();
        assert_eq!(shake(&client, &with(&[key(1)])), "full");
        // Another server, e.g. another process, with the same keys.
        assert_eq!(shake(&client, &with(&[key(1)])), "resumed");
        // Rotation: a new key in front, the old one behind it for as long as its tickets live.
        assert_eq!(shake(&client, &with(&[key(2), key(1)])), "resumed");
        assert_eq!(shake(&client, &with(&[key(2)])), "resumed");
        assert_eq!(shake(&client, &with(&[key(3)])), "full");
        // A stricter context does not take a laxer one's session.
        let strict = ServerSettings {
            tickets: TicketKeys::Given(vec![key(3)]),
            rules: Arc::new(trusting(&ca)),
            ..server(&own)
        };
        assert_eq!(shake(&client, &strict.build().unwrap().config), "full");
    }
}

#[test]
fn spiffe_bundles_by_trust_domain() {
    let (ca, other) = (authority("one"), authority("two"));
    let domains = vec![("one.test".to_owned(), bundle(&ca)), ("two.test".to_owned(), bundle(&other))];
    let rules = ValidationRules { trust: Trust::Spiffe(Arc::new(domains)), ..ValidationRules::default() };
    let check = |issuer: &Authority, names: &[SanType], usages: &[KeyUsagePurpose], expected: &str| {
        let mut params = params(names);
        params.key_usages = usages.to_vec();
        let server = server(&identity(issuer, &params)).build().unwrap();
        assert_eq!(shake(&client(rules.clone()).build().unwrap(), &server.config), expected, "{names:?}");
    };
    check(&ca, &[uri("spiffe://one.test/a")], &[], "full");
    check(&other, &[uri("spiffe://two.test/a")], &[KeyUsagePurpose::DigitalSignature], "full");
    // Another domain's bundle, an unknown domain, no SPIFFE ID, one that could sign others.
    check(&other, &[uri("spiffe://one.test/a")], &[], "chain");
    check(&ca, &[uri("spiffe://three.test/a")], &[], "chain");
    check(&ca, &[dns("one.test")], &[], "chain");
    check(&ca, &[uri("spiffe://one.test/a")], &[KeyUsagePurpose::KeyCertSign], "chain");
    // Names are looked at besides.
    let matcher = TextMatcher::Exact("spiffe://one.test/b".into(), false);
    let rules = ValidationRules { names: vec![NameMatcher { kind: NameKind::Uri, matcher }], ..rules };
    let server = server(&identity(&ca, &params(&[uri("spiffe://one.test/a")]))).build().unwrap();
    assert_eq!(shake(&client(rules).build().unwrap(), &server.config), "names");
}

#[test]
fn pins_revocations_and_expected_names() {
    let ca = authority("ca");
    let digest = |bytes: &[u8]| -> [u8; 32] {
        aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref().try_into().unwrap()
    };
    let mut revoked = params(&[dns("server.test")]);
    revoked.serial_number = Some(SerialNumber::from(7u64));
    let (own, revoked) = (identity(&ca, &params(&[dns("server.test")])), identity(&ca, &revoked));
    let context = |identity: &Arc<Identity>| server(identity).build().unwrap().config;
    let with = |rules: ValidationRules, identity: &Arc<Identity>| {
        shake(&client(rules).build().unwrap(), &context(identity))
    };
    let pin = digest(own.certificate().der());
    let pinned = ValidationRules { hashes: vec![[0; 32], pin], ..ValidationRules::default() };
    assert_eq!(with(pinned.clone(), &own), "full");
    assert_eq!(with(pinned, &revoked), "pins");
    // Beside a trusted CA both must hold.
    let both = ValidationRules { hashes: vec![pin], ..trusting(&authority("other")) };
    assert_eq!(with(both, &own), "chain");

    let crl = CertificateRevocationListParams {
        this_update: date_time_ymd(2020, 1, 1),
        next_update: date_time_ymd(2120, 1, 1),
        crl_number: SerialNumber::from(1u64),
        issuing_distribution_point: None,
        revoked_certs: vec![RevokedCertParams {
            serial_number: SerialNumber::from(7u64),
            revocation_time: date_time_ymd(2021, 1, 1),
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let crl = crl.signed_by(&ca).unwrap().pem().unwrap();
    for leaf_crl_only in [false, true] {
        let revocations = Arc::new(Revocations::parse(crl.as_bytes()).unwrap());
        let rules = ValidationRules { revocations, leaf_crl_only, ..trusting(&ca) };
        assert_eq!(with(rules.clone(), &own), "full");
        assert_eq!(with(rules, &revoked), "chain");
    }

    // The name of one connection (`auto_san_validation`), if anybody is trusted at all.
    for (name, expected) in [("server.test", "full"), ("other.test", "names"), ("10.0.0.1", "names")] {
        leno_tls::expect_name(Some(name.into()));
        assert_eq!(with(trusting(&ca), &own), expected, "{name}");
        assert_eq!(with(ValidationRules::default(), &own), "full", "{name}");
    }
    leno_tls::expect_name(None);
}

#[test]
fn signatures_are_limited_to_those_of_the_list() {
    let ca = authority("ca");
    let own = identity(&ca, &params(&[dns("server.test")]));
    let limited = |names: &[&str]| {
        let mut parameters = Parameters::default();
        parameters.set_schemes(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        parameters
    };
    let check = |server_side: Parameters, client_side: Parameters| {
        let server = ServerSettings { parameters: server_side, ..server(&own) }.build().unwrap();
        let client = ClientSettings { parameters: client_side, ..client(trusting(&ca)) }.build().unwrap();
        shake(&client, &server.config)
    };
    let (p256, rsa) = (&["ecdsa_secp256r1_sha256"][..], &["rsa_pss_rsae_sha256"][..]);
    assert_eq!(check(limited(p256), Parameters::default()), "full");
    assert_eq!(check(Parameters::default(), limited(p256)), "full");
    assert_ne!(check(limited(rsa), Parameters::default()), "full");
    assert_ne!(check(Parameters::default(), limited(rsa)), "full");
    let mut fips = Parameters::default();
    fips.set_fips();
    assert_eq!(check(fips.clone(), Parameters::default()), "full");
    assert_eq!(check(Parameters::default(), fips), "full");
}
