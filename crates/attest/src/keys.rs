//! Keys: ECDSA P-256 for facts, Ed25519 for the log.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, ED25519, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
    UnparsedPublicKey,
};

use adamant_digest::Digest;

/// RFC 5480: SEQUENCE { SEQUENCE { id-ecPublicKey, prime256v1 }, BIT STRING } up to the point.
const P256_SPKI: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// RFC 8410: SEQUENCE { SEQUENCE { id-Ed25519 }, BIT STRING } up to the key.
const ED25519_SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

const PUBLIC_LABEL: &str = "PUBLIC KEY";
const PRIVATE_LABEL: &str = "PRIVATE KEY";
const MAX_PEM_BYTES: usize = 4096;

/// A signature scheme.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// ECDSA over P-256 with SHA-256; signatures in ASN.1 DER.
    EcdsaP256,
    /// Ed25519 (RFC 8032); signatures of 64 bytes.
    Ed25519,
}

/// Why a key cannot be used, or a signature is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The system gave no randomness.
    #[error("no key or signature could be made: the system's random generator does not answer")]
    Random,
    /// Not a PKCS#8 key of either scheme.
    #[error("not a PKCS#8 private key for ECDSA P-256 or Ed25519")]
    Private,
    /// Not an SPKI key of either scheme.
    #[error("not a SubjectPublicKeyInfo for ECDSA P-256 or Ed25519")]
    Public,
    /// Not PEM with the expected label.
    #[error("not a PEM text with the label `{0}`")]
    Pem(&'static str),
    /// The signature does not hold.
    #[error("the signature is not one of key {0} over these bytes")]
    Signature(String),
}

/// A public key.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct PublicKey {
    algorithm: Algorithm,
    raw: Vec<u8>,
    keyid: String,
}

impl PublicKey {
    fn new(algorithm: Algorithm, raw: &[u8]) -> Self {
        Self { algorithm, raw: raw.to_vec(), keyid: fingerprint(algorithm, raw) }
    }

    /// From the 32 bytes of an Ed25519 key.
    pub fn ed25519(raw: &[u8; 32]) -> Self {
        Self::new(Algorithm::Ed25519, raw)
    }

    /// From a DER SubjectPublicKeyInfo (RFC 5480 with an uncompressed point, RFC 8410).
    pub fn from_spki_der(der: &[u8]) -> Result<Self, KeyError> {
        if let Some(point) = der.strip_prefix(&P256_SPKI)
            && point.len() == 65
            && point[0] == 4
        {
            return Ok(Self::new(Algorithm::EcdsaP256, point));
        }
        match der.strip_prefix(&ED25519_SPKI) {
            Some(raw) if raw.len() == 32 => Ok(Self::new(Algorithm::Ed25519, raw)),
            _ => Err(KeyError::Public),
        }
    }

    /// From PEM, label `PUBLIC KEY`.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        Self::from_spki_der(&pem_decode(text, PUBLIC_LABEL)?)
    }

    /// From the line of an OpenSSH public key: `ssh-ed25519 AAAA… comment`, `ecdsa-sha2-nistp256 AAAA…`.
    pub fn from_openssh(line: &str) -> Result<Self, KeyError> {
        let mut words = line.split_whitespace();
        let (Some(kind), Some(body)) = (words.next(), words.next().filter(|body| body.len() <= MAX_PEM_BYTES)) else {
            return Err(KeyError::Public);
        };
        let blob = STANDARD.decode(body).map_err(|_| KeyError::Public)?;
        let mut rest = blob.as_slice();
        let fields = std::iter::from_fn(|| {
            let (length, after) = rest.split_at_checked(4)?;
            let length = length.iter().fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte));
            let (field, after) = after.split_at_checked(length)?;
            rest = after;
            Some(field)
        });
        let fields: Vec<_> = fields.take(4).collect();
        if !rest.is_empty() {
            return Err(KeyError::Public);
        }
        match (kind, fields.as_slice()) {
            ("ssh-ed25519", [b"ssh-ed25519", raw]) if raw.len() == 32 => Ok(Self::new(Algorithm::Ed25519, raw)),
            ("ecdsa-sha2-nistp256", [b"ecdsa-sha2-nistp256", b"nistp256", point])
                if point.len() == 65 && point.first() == Some(&4) =>
            {
                Ok(Self::new(Algorithm::EcdsaP256, point))
            }
            _ => Err(KeyError::Public),
        }
    }

    /// As a DER SubjectPublicKeyInfo.
    pub fn spki_der(&self) -> Vec<u8> {
        let prefix: &[u8] = match self.algorithm {
            Algorithm::EcdsaP256 => &P256_SPKI,
            Algorithm::Ed25519 => &ED25519_SPKI,
        };
        [prefix, &self.raw].concat()
    }

    /// As PEM, label `PUBLIC KEY`.
    pub fn to_pem(&self) -> String {
        pem_encode(&self.spki_der(), PUBLIC_LABEL)
    }

    /// The scheme.
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The key alone: the uncompressed point (65 bytes) or the Ed25519 key (32 bytes).
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// The OpenSSH fingerprint, `SHA256:` and base64 without padding, as `ssh-keygen -l` prints.
    pub fn keyid(&self) -> &str {
        &self.keyid
    }

    /// Checks a signature over `message`.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), KeyError> {
        let algorithm: &'static dyn ring::signature::VerificationAlgorithm = match self.algorithm {
            Algorithm::EcdsaP256 => &ECDSA_P256_SHA256_ASN1,
            Algorithm::Ed25519 => &ED25519,
        };
        UnparsedPublicKey::new(algorithm, &self.raw)
            .verify(message, signature)
            .map_err(|_| KeyError::Signature(self.keyid.clone()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({:?} {})", self.algorithm, self.keyid)
    }
}

/// A private key. `Debug` shows the public half; there is no `Display`.
pub struct SigningKey {
    pair: Pair,
    pkcs8: Vec<u8>,
    public: PublicKey,
    random: SystemRandom,
}

enum Pair {
    EcdsaP256(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

impl SigningKey {
    /// A new key from the system's randomness.
    pub fn generate(algorithm: Algorithm) -> Result<Self, KeyError> {
        let random = SystemRandom::new();
        let document = match algorithm {
            Algorithm::EcdsaP256 => EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random),
            Algorithm::Ed25519 => Ed25519KeyPair::generate_pkcs8(&random),
        }
        .map_err(|_| KeyError::Random)?;
        Self::from_pkcs8_der(document.as_ref())
    }

    /// From PKCS#8 DER, as [`SigningKey::generate`] or `openssl genpkey` writes it.
    pub fn from_pkcs8_der(der: &[u8]) -> Result<Self, KeyError> {
        let random = SystemRandom::new();
        let (pair, public) = if let Ok(pair) = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der, &random) {
            let public = PublicKey::new(Algorithm::EcdsaP256, pair.public_key().as_ref());
            (Pair::EcdsaP256(pair), public)
        } else {
            let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).map_err(|_| KeyError::Private)?;
            let public = PublicKey::new(Algorithm::Ed25519, pair.public_key().as_ref());
            (Pair::Ed25519(pair), public)
        };
        Ok(Self { pair, pkcs8: der.to_vec(), public, random })
    }

    /// From PKCS#8 PEM, label `PRIVATE KEY`.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        Self::from_pkcs8_der(&pem_decode(text, PRIVATE_LABEL)?)
    }

    /// The key as PKCS#8 DER. A secret.
    pub fn secret_pkcs8_der(&self) -> &[u8] {
        &self.pkcs8
    }

    /// The key as PKCS#8 PEM. A secret.
    pub fn secret_pem(&self) -> String {
        pem_encode(&self.pkcs8, PRIVATE_LABEL)
    }

    /// The public half.
    pub const fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Signs `message`: ASN.1 DER for ECDSA, 64 bytes for Ed25519.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        match &self.pair {
            Pair::EcdsaP256(pair) => {
                let signature = pair.sign(&self.random, message).map_err(|_| KeyError::Random)?;
                Ok(signature.as_ref().to_vec())
            }
            Pair::Ed25519(pair) => Ok(pair.sign(message).as_ref().to_vec()),
        }
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({:?})", self.public)
    }
}

/// SHA-256 over the key as SSH writes it (RFC 4253 §6.6, RFC 5656 §3.1, RFC 8709 §4).
fn fingerprint(algorithm: Algorithm, raw: &[u8]) -> String {
    let parts: &[&[u8]] = match algorithm {
        Algorithm::EcdsaP256 => &[b"ecdsa-sha2-nistp256", b"nistp256", raw],
        Algorithm::Ed25519 => &[b"ssh-ed25519", raw],
    };
    let mut wire = Vec::with_capacity(128);
    for part in parts {
        // Every part is a constant or a key of fixed length, far below 4 GiB.
        wire.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
        wire.extend_from_slice(part);
    }
    format!("SHA256:{}", STANDARD_NO_PAD.encode(Digest::of(&wire).as_bytes()))
}

fn pem_encode(der: &[u8], label: &str) -> String {
    let body = STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    for (i, letter) in body.chars().enumerate() {
        if i > 0 && i % 64 == 0 {
            out.push('\n');
        }
        out.push(letter);
    }
    out + "\n-----END " + label + "-----\n"
}

fn pem_decode(text: &str, label: &'static str) -> Result<Vec<u8>, KeyError> {
    let bad = KeyError::Pem(label);
    if text.len() > MAX_PEM_BYTES {
        return Err(bad);
    }
    let body = text
        .trim()
        .strip_prefix(&format!("-----BEGIN {label}-----"))
        .and_then(|rest| rest.strip_suffix(&format!("-----END {label}-----")))
        .ok_or(KeyError::Pem(label))?;
    let body: String = body.chars().filter(|letter| !letter.is_ascii_whitespace()).collect();
    STANDARD.decode(body).map_err(|_| bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys made once with `openssl genpkey`, fingerprints printed by `ssh-keygen -l`.
    #[test]
    fn reads_openssl_keys_and_names_them_as_ssh_does() {
        let check = |secret: &str, public: &str, keyid: &str| {
            let secret =
                SigningKey::from_pem(&format!("-----BEGIN PRIVATE KEY-----\n{secret}-----END PRIVATE KEY-----\n"));
            let pem = format!("-----BEGIN PUBLIC KEY-----\n{public}-----END PUBLIC KEY-----\n");
            let public = PublicKey::from_pem(&pem).unwrap();
            assert_eq!(public.keyid(), keyid);
            assert_eq!(public.to_pem(), pem);
            assert_eq!(secret.unwrap().public(), &public);
        };
        check(
            "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgvTIWaKm4Hk+vVYqM\n\
             2X2KQXB+vptY3WVAuYMTMOcIYuKhRANCAAQAD6If/s6JTe+OXj9lKqyzNbbDu3aB\n\
             rFp1Dk/9PEh4Td3j2rXGp/8G2f6US8pGiCQnCnza3suJHyJ8uGD/wx5I\n",
            "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEAA+iH/7OiU3vjl4/ZSqsszW2w7t2\n\
             gaxadQ5P/TxIeE3d49q1xqf/Btn+lEvKRogkJwp82t7LiR8ifLhg/8MeSA==\n",
            "SHA256:hezIZcEx3IQoV1k2lYPf7gP/mfj8XAisKs7pAx6GDKs",
        );
        check(
            "MC4CAQAwBQYDK2VwBCIEIBG9FdUY5uz+P2Co7ssLiDSZW+pnsYP33cMECxZ10eMg\n",
            "MCowBQYDK2VwAyEAZ3IQcUkkCfD5epaOIL+bdg8Tl/ESd+/H6g7beTDRHss=\n",
            "SHA256:hBOSa74pWAD9NG245hPKDQ5ZPwj6yrJL+LWp3jLd7Bw",
        );
    }

    #[test]
    fn keeps_keys_through_der_and_pem() {
        for algorithm in [Algorithm::EcdsaP256, Algorithm::Ed25519] {
            let key = SigningKey::generate(algorithm).unwrap();
            let again = SigningKey::from_pem(&key.secret_pem()).unwrap();
            assert_eq!(again.public(), key.public());
            let public = PublicKey::from_pem(&key.public().to_pem()).unwrap();
            assert_eq!(&public, key.public());
            assert_eq!(public.algorithm(), algorithm);
            public.verify(b"m", &again.sign(b"m").unwrap()).unwrap();
            assert!(public.verify(b"n", &again.sign(b"m").unwrap()).is_err());
            assert!(public.verify(b"m", b"").is_err());
            assert!(SigningKey::from_pem(&key.public().to_pem()).is_err());
            assert!(PublicKey::from_pem(&key.secret_pem()).is_err());
            let der = public.spki_der();
            assert!(PublicKey::from_spki_der(&der[..der.len() - 1]).is_err());
            assert!(PublicKey::from_spki_der(&[der, vec![0]].concat()).is_err());
        }
    }

    #[test]
    fn reads_the_public_keys_of_ssh_keygen() {
        let spki = |key: &PublicKey| PublicKey::from_spki_der(&key.spki_der()).unwrap();
        for algorithm in [Algorithm::EcdsaP256, Algorithm::Ed25519] {
            let key = SigningKey::generate(algorithm).unwrap();
            let (kind, fields): (&str, Vec<&[u8]>) = match algorithm {
                Algorithm::Ed25519 => ("ssh-ed25519", vec![b"ssh-ed25519", key.public().raw()]),
                Algorithm::EcdsaP256 => {
                    ("ecdsa-sha2-nistp256", vec![b"ecdsa-sha2-nistp256", b"nistp256", key.public().raw()])
                }
            };
            let blob: Vec<u8> = fields
                .iter()
                .flat_map(|field| [&u32::try_from(field.len()).unwrap().to_be_bytes()[..], field].concat())
                .collect();
            let line = format!("{kind} {} ann@example", STANDARD.encode(&blob));
            assert_eq!(PublicKey::from_openssh(&line).unwrap(), spki(key.public()));
            for bad in [&blob[..blob.len() - 1], &[&blob[..], b"x"].concat(), b"", &[255; 8]] {
                PublicKey::from_openssh(&format!("{kind} {}", STANDARD.encode(bad))).unwrap_err();
            }
            PublicKey::from_openssh(&format!("ssh-rsa {}", STANDARD.encode(&blob))).unwrap_err();
            PublicKey::from_openssh(kind).unwrap_err();
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let key = SigningKey::generate(Algorithm::Ed25519).unwrap();
        let shown = format!("{key:?}");
        assert!(shown.contains(key.public().keyid()), "{shown}");
        assert!(shown.len() < 100, "{shown}");
    }
}
