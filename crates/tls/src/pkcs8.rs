//! Private keys that are encrypted with a password: PKCS #8 with PBES2 (RFC 5958, RFC 8018).

use std::num::NonZeroU32;

use aws_lc_rs::cipher::{
    AES_128, AES_192, AES_256, DecryptionContext, PaddedBlockDecryptingKey, UnboundCipherKey,
};
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::pbkdf2;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::der::{INTEGER, OBJECT, OCTETS, Reader, SEQUENCE};

const PBES2: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x0d];
const PBKDF2: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x05, 0x0c];
/// hmacWithSHA1 and its kin; the last octet tells them apart.
const HMAC: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x02];
/// The AES algorithms; likewise.
const AES: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x01];

/// More rounds than anybody uses, to bound what a file can cost.
const MAX_ITERATIONS: u32 = 10_000_000;

const BEGIN: &str = "-----BEGIN ENCRYPTED PRIVATE KEY-----";
const END: &str = "-----END ENCRYPTED PRIVATE KEY-----";

/// Whether there is an encrypted key in this PEM text.
pub(crate) fn is_encrypted(pem: &[u8]) -> bool {
    memchr::memmem::find(pem, BEGIN.as_bytes()).is_some()
}

/// Decrypts the key in a PEM text.
///
/// # Errors
/// It is malformed, of a kind that is not known, or the password is wrong.
pub(crate) fn decrypt(pem: &[u8], password: &[u8]) -> Result<PrivateKeyDer<'static>, &'static str> {
    let text = std::str::from_utf8(pem).map_err(|_| "malformed PEM")?;
    let (_, rest) = text.split_once(BEGIN).ok_or("malformed PEM")?;
    let (body, _) = rest.split_once(END).ok_or("malformed PEM")?;
    let body: Vec<u8> = body.bytes().filter(|octet| !octet.is_ascii_whitespace()).collect();
    let der = leno_base::base64::decode(&body).ok_or("malformed PEM")?;
    let plain = open(&der, password)?;
    Ok(PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(plain)))
}

fn open(der: &[u8], password: &[u8]) -> Result<Vec<u8>, &'static str> {
    const MALFORMED: &str = "malformed PKCS #8";
    const UNKNOWN: &str = "the key is encrypted in a way that is not supported: only PBES2 with AES is";
    let mut outer = Reader::new(der).sequence().ok_or(MALFORMED)?;
    let mut scheme = outer.sequence().ok_or(MALFORMED)?;
    let encrypted = outer.expect(OCTETS).ok_or(MALFORMED)?.content;
    if scheme.expect(OBJECT).ok_or(MALFORMED)?.content != PBES2 {
        return Err(UNKNOWN);
    }
    let mut parameters = scheme.sequence().ok_or(MALFORMED)?;
    let mut derivation = parameters.sequence().ok_or(MALFORMED)?;
    let mut cipher = parameters.sequence().ok_or(MALFORMED)?;
    if derivation.expect(OBJECT).ok_or(MALFORMED)?.content != PBKDF2 {
        return Err(UNKNOWN);
    }
    let mut derivation = derivation.sequence().ok_or(MALFORMED)?;
    let salt = derivation.expect(OCTETS).ok_or(MALFORMED)?.content;
    let iterations =
        derivation.expect(INTEGER).and_then(|element| number(element.content)).ok_or(MALFORMED)?;
    let iterations =
        NonZeroU32::new(iterations).filter(|count| count.get() <= MAX_ITERATIONS).ok_or(UNKNOWN)?;
    let mut hash = pbkdf2::PBKDF2_HMAC_SHA1;
    while let Some(element) = derivation.next() {
        // The length of the key is said by the cipher too.
        if element.tag == SEQUENCE {
            let name = Reader::new(element.content).expect(OBJECT).ok_or(MALFORMED)?.content;
            hash = match name.strip_prefix(HMAC) {
                Some([7]) => pbkdf2::PBKDF2_HMAC_SHA1,
                Some([9]) => pbkdf2::PBKDF2_HMAC_SHA256,
                Some([10]) => pbkdf2::PBKDF2_HMAC_SHA384,
                Some([11]) => pbkdf2::PBKDF2_HMAC_SHA512,
                _ => return Err(UNKNOWN),
            };
        }
    }
    let (algorithm, length) =
        match cipher.expect(OBJECT).and_then(|element| element.content.strip_prefix(AES)) {
            Some([2]) => (&AES_128, 16),
            Some([22]) => (&AES_192, 24),
            Some([42]) => (&AES_256, 32),
            _ => return Err(UNKNOWN),
        };
    let iv: [u8; 16] =
        cipher.expect(OCTETS).and_then(|element| element.content.try_into().ok()).ok_or(MALFORMED)?;
    let mut key = [0; 32];
    let key = key.get_mut(..length).ok_or(MALFORMED)?;
    pbkdf2::derive(hash, iterations, salt, password, key);
    let key = UnboundCipherKey::new(algorithm, key).map_err(|_| MALFORMED)?;
    let key = PaddedBlockDecryptingKey::cbc_pkcs7(key).map_err(|_| MALFORMED)?;
    let mut plain = encrypted.to_vec();
    let context = DecryptionContext::Iv128(FixedLength::from(iv));
    let wrong = |_| "the password is wrong";
    let length = key.decrypt(&mut plain, context).map_err(wrong)?.len();
    plain.truncate(length);
    // What the wrong password makes of it has the right padding at times.
    Reader::new(&plain).sequence().ok_or("the password is wrong")?;
    Ok(plain)
}

fn number(octets: &[u8]) -> Option<u32> {
    let octets = octets.strip_prefix(&[0]).unwrap_or(octets);
    (octets.len() <= 4).then(|| octets.iter().fold(0, |number, octet| number << 8 | u32::from(*octet)))
}

#[cfg(test)]
mod tests {
    use super::{decrypt, is_encrypted};

    /// Made by `openssl pkcs8 -topk8 -v2 CIPHER -v2prf PRF -passout pass:secret`.
    const KEYS: [&str; 2] = [KEY1, KEY2];
    const KEY1: &str = "\
        -----BEGIN ENCRYPTED PRIVATE KEY-----\n\
        MIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAim13l1zd4cOQICCAAw\n\
        DAYIKoZIhvcNAgkFADAdBglghkgBZQMEASoEEEQroYGAMI7glSRcqVQYk7EEgZBl\n\
        z17yTFox9FVApevJV1CsXHqnR+EP9m/A59nozFYguigtseLLML9X/yzbrx7GFbBO\n\
        cqAT2993TsvxsrEQHDK0fEcHm7sO/NIb3PZAeALS67ahR3qPzE+z4sXkJ9pmzPFr\n\
        fQAnRfDb8iiP5HRSKtR8VBeU7y7LdJQdKXE1f+TGd7O7wS180HAAsMTCpQjWua4=\n\
        -----END ENCRYPTED PRIVATE KEY-----";
    const KEY2: &str = "\
        -----BEGIN ENCRYPTED PRIVATE KEY-----\n\
        MIHeMEkGCSqGSIb3DQEFDTA8MBsGCSqGSIb3DQEFDDAOBAhLfZ0FXCFjwwICCAAw\n\
        HQYJYIZIAWUDBAECBBBfjfE5ayML2wxY7Tl5Dn2+BIGQkU7z9FCkpqx2Rh+4qqIy\n\
        xBHwVERIFA10/Haz40jMPonkkilVyHtsg3GCuZxexbdEpARjLGcabhGbqVX/wBQv\n\
        F7cXLhdwVW6oRBKJTExnblJZAm3IAUTaQeXOx0iv3Dq+dLWB+I+TpSNFG8aYTqKA\n\
        KZjKetBQWhIPycstVKU8FRrN055/7GRrIdcBQhOaHMW1\n\
        -----END ENCRYPTED PRIVATE KEY-----";

    #[test]
    fn keys_open_with_their_password_only() {
        for key in KEYS {
            assert!(is_encrypted(key.as_bytes()));
            let plain = decrypt(key.as_bytes(), b"secret").unwrap();
            assert!(rustls::crypto::aws_lc_rs::sign::any_supported_type(&plain).is_ok());
            assert_eq!(decrypt(key.as_bytes(), b"secrets").unwrap_err(), "the password is wrong");
        }
        assert_eq!(decrypt(b"-----BEGIN ENCRYPTED PRIVATE KEY-----", b"").unwrap_err(), "malformed PEM");
        let cut =
            format!("{}MAAA\n-----END ENCRYPTED PRIVATE KEY-----", "-----BEGIN ENCRYPTED PRIVATE KEY-----\n");
        assert_eq!(decrypt(cut.as_bytes(), b"").unwrap_err(), "malformed PKCS #8");
    }
}
