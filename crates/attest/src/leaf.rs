//! The leaf of the log: what is hashed into the tree for an envelope.

use adamant_digest::Digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::envelope::Envelope;
use crate::keys::{Algorithm, PublicKey};

/// The canonical `hashedrekord` 0.0.2 of Rekor v2 for `envelope`, signed by `key`: SHA-256 of
/// what was signed, the signature and the key. It names the key, so a leaf fixes who signed.
pub fn leaf(envelope: &Envelope, key: &PublicKey) -> Vec<u8> {
    let digest = STANDARD.encode(Digest::of(&envelope.pae()).as_bytes());
    let signature = STANDARD.encode(&envelope.signature);
    let details = match key.algorithm() {
        Algorithm::EcdsaP256 => "PKIX_ECDSA_P256_SHA_256",
        Algorithm::Ed25519 => "PKIX_ED25519",
    };
    let spki = STANDARD.encode(key.spki_der());
    // Base64 and constants alone: the text is canonical as it stands (a test holds it to that).
    format!(
        "{{\"apiVersion\":\"0.0.2\",\"kind\":\"hashedrekord\",\"spec\":{{\"hashedRekordV002\":{{\
         \"data\":{{\"algorithm\":\"SHA2_256\",\"digest\":\"{digest}\"}},\
         \"signature\":{{\"content\":\"{signature}\",\"verifier\":{{\"keyDetails\":\"{details}\",\
         \"publicKey\":{{\"rawBytes\":\"{spki}\"}}}}}}}}}}}}"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::SigningKey;

    #[test]
    fn is_canonical_and_names_what_was_signed() {
        let key = SigningKey::generate(Algorithm::EcdsaP256).unwrap();
        let envelope = Envelope::sign(b"{}".to_vec(), &key).unwrap();
        let bytes = leaf(&envelope, key.public());
        let value = crate::parse_strict(&bytes).unwrap();
        assert_eq!(crate::canonical(&value).unwrap(), bytes);
        let spec = &value["spec"]["hashedRekordV002"];
        assert_eq!(value["apiVersion"], "0.0.2");
        assert_eq!(value["kind"], "hashedrekord");
        assert_eq!(spec["data"]["digest"], STANDARD.encode(Digest::of(&envelope.pae()).as_bytes()));
        assert_eq!(spec["data"]["algorithm"], "SHA2_256");
        assert_eq!(spec["signature"]["content"], STANDARD.encode(&envelope.signature));
        assert_eq!(spec["signature"]["verifier"]["keyDetails"], "PKIX_ECDSA_P256_SHA_256");
        assert_eq!(spec["signature"]["verifier"]["publicKey"]["rawBytes"], STANDARD.encode(key.public().spki_der()));
    }
}
