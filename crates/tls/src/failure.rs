//! The words of failed handshakes. They reach users in logs and responses, so they are
//! BoringSSL's where it has fixed ones: `TLS_error:|CODE:SSL routines:OPENSSL_internal:REASON...`.

use rustls::{AlertDescription, Error, InvalidMessage, PeerIncompatible};

use crate::verify::{Failure, Rule};

/// Number of BoringSSL's library of these reasons, in its place.
const LIBRARY: u32 = 16 << 24;
/// The same of the system's.
const SYSTEM_LIBRARY: u32 = 2 << 24;

/// How a handshake or connection failed, as Envoy words it.
pub fn describe(error: &Error, failure: Option<&Failure>) -> String {
    let (number, reason) = reason(error, failure);
    let detail = match failure {
        Some(failure) if number == CERTIFICATE_VERIFY_FAILED.0 => format!(":{}", failure.text),
        _ if is_missing_certificate(error) => ":peer did not provide required client certificate".to_owned(),
        _ => String::new(),
    };
    format!(
        "TLS_error:|{}:SSL routines:OPENSSL_internal:{reason}{detail}:TLS_error_end",
        LIBRARY + u32::from(number)
    )
}

/// How the system failed during a handshake; `None`: the peer has closed in order.
pub fn describe_socket(error: &std::io::Error) -> Option<String> {
    let number = error.raw_os_error().and_then(|number| u32::try_from(number).ok())?;
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    Some(format!(
        "TLS_error:|{}:system library:OPENSSL_internal:{text}:TLS_error_end",
        SYSTEM_LIBRARY + number
    ))
}

/// What is read instead of TLS looks like plain HTTP: BoringSSL has a word for that.
pub fn plain_http() -> String {
    format!("TLS_error:|{}:SSL routines:OPENSSL_internal:HTTP_REQUEST:TLS_error_end", LIBRARY + 156)
}

/// Whether the peer showed no certificate though it had to (`fail_verify_no_cert`).
pub fn is_missing_certificate(error: &Error) -> bool {
    matches!(error, Error::NoCertificatesPresented)
}

/// Whether the peer's certificate was refused (counted where it was).
pub fn is_refused_certificate(error: &Error) -> bool {
    matches!(error, Error::InvalidCertificate(_))
}

const CERTIFICATE_VERIFY_FAILED: (u16, &str) = (125, "CERTIFICATE_VERIFY_FAILED");

fn reason(error: &Error, failure: Option<&Failure>) -> (u16, &'static str) {
    match error {
        Error::InvalidCertificate(_) if failure.is_some_and(|failure| failure.rule == Rule::KeyUsage) => {
            (283, "KEY_USAGE_BIT_INCORRECT")
        }
        Error::InvalidCertificate(_) => CERTIFICATE_VERIFY_FAILED,
        Error::NoCertificatesPresented => (192, "PEER_DID_NOT_RETURN_A_CERTIFICATE"),
        Error::AlertReceived(alert) => {
            let number = u8::from(*alert);
            let name = alert_name(*alert);
            (1000 + u16::from(number), name)
        }
        Error::PeerIncompatible(problem) => match problem {
            PeerIncompatible::NoCipherSuitesInCommon => (184, "NO_SHARED_CIPHER"),
            PeerIncompatible::NoKxGroupsInCommon | PeerIncompatible::NamedGroupsExtensionRequired => {
                (266, "NO_SHARED_GROUP")
            }
            PeerIncompatible::NoSignatureSchemesInCommon
            | PeerIncompatible::NoCertificateRequestSignatureSchemesInCommon => {
                (253, "NO_COMMON_SIGNATURE_ALGORITHMS")
            }
            _ => (240, "UNSUPPORTED_PROTOCOL"),
        },
        Error::InvalidMessage(
            InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
        ) => (247, "WRONG_VERSION_NUMBER"),
        Error::InvalidMessage(_) => (137, "DECODE_ERROR"),
        Error::DecryptError => (130, "DECRYPTION_FAILED_OR_BAD_RECORD_MAC"),
        Error::InappropriateMessage { .. } | Error::InappropriateHandshakeMessage { .. } => {
            (223, "UNEXPECTED_MESSAGE")
        }
        Error::NoApplicationProtocol => (307, "NO_APPLICATION_PROTOCOL"),
        Error::PeerSentOversizedRecord => (136, "DATA_LENGTH_TOO_LONG"),
        // A server without a certificate for the client.
        Error::General(_) => (226, "UNKNOWN_CERTIFICATE_TYPE"),
        _ => (68, "INTERNAL_ERROR"),
    }
}

fn alert_name(alert: AlertDescription) -> &'static str {
    match u8::from(alert) {
        0 => "SSLV3_ALERT_CLOSE_NOTIFY",
        10 => "SSLV3_ALERT_UNEXPECTED_MESSAGE",
        20 => "SSLV3_ALERT_BAD_RECORD_MAC",
        21 => "TLSV1_ALERT_DECRYPTION_FAILED",
        22 => "TLSV1_ALERT_RECORD_OVERFLOW",
        30 => "SSLV3_ALERT_DECOMPRESSION_FAILURE",
        40 => "SSLV3_ALERT_HANDSHAKE_FAILURE",
        41 => "SSLV3_ALERT_NO_CERTIFICATE",
        42 => "SSLV3_ALERT_BAD_CERTIFICATE",
        43 => "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
        44 => "SSLV3_ALERT_CERTIFICATE_REVOKED",
        45 => "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        46 => "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
        47 => "SSLV3_ALERT_ILLEGAL_PARAMETER",
        48 => "TLSV1_ALERT_UNKNOWN_CA",
        49 => "TLSV1_ALERT_ACCESS_DENIED",
        50 => "TLSV1_ALERT_DECODE_ERROR",
        51 => "TLSV1_ALERT_DECRYPT_ERROR",
        60 => "TLSV1_ALERT_EXPORT_RESTRICTION",
        70 => "TLSV1_ALERT_PROTOCOL_VERSION",
        71 => "TLSV1_ALERT_INSUFFICIENT_SECURITY",
        80 => "TLSV1_ALERT_INTERNAL_ERROR",
        86 => "TLSV1_ALERT_INAPPROPRIATE_FALLBACK",
        90 => "TLSV1_ALERT_USER_CANCELLED",
        100 => "TLSV1_ALERT_NO_RENEGOTIATION",
        110 => "TLSV1_ALERT_UNSUPPORTED_EXTENSION",
        111 => "TLSV1_ALERT_CERTIFICATE_UNOBTAINABLE",
        112 => "TLSV1_ALERT_UNRECOGNIZED_NAME",
        113 => "TLSV1_ALERT_BAD_CERTIFICATE_STATUS_RESPONSE",
        114 => "TLSV1_ALERT_BAD_CERTIFICATE_HASH_VALUE",
        115 => "TLSV1_ALERT_UNKNOWN_PSK_IDENTITY",
        116 => "TLSV1_ALERT_CERTIFICATE_REQUIRED",
        120 => "TLSV1_ALERT_NO_APPLICATION_PROTOCOL",
        _ => "UNKNOWN_ALERT_TYPE",
    }
}

#[cfg(test)]
mod tests {
    use rustls::{AlertDescription, CertificateError, Error};

    use super::describe;
    use crate::verify::{Failure, Rule};

    #[test]
    fn boringssl_words() {
        let failure = Failure { rule: Rule::Names, text: "verify cert failed: SAN matcher".to_owned() };
        assert_eq!(
            describe(&Error::InvalidCertificate(CertificateError::BadEncoding), Some(&failure)),
            "TLS_error:|268435581:SSL routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED:verify cert failed: SAN matcher:TLS_error_end"
        );
        assert_eq!(
            describe(&Error::AlertReceived(AlertDescription::UnknownCA), None),
            "TLS_error:|268436504:SSL routines:OPENSSL_internal:TLSV1_ALERT_UNKNOWN_CA:TLS_error_end"
        );
    }
}
