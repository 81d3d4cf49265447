//! Signed notes, <https://c2sp.org/signed-note>.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use sha2::{Digest as _, Sha256};

/// Longest note read, in bytes.
const MAX_NOTE_BYTES: usize = 64 << 10;
/// Most signatures on a note.
const MAX_SIGNATURES: usize = 64;
const MAX_NAME_BYTES: usize = 255;

const ED25519_TYPE: u8 = 1;
const COSIGNATURE_TYPE: u8 = 4;

/// Text and the signatures under it. `Display` gives the exact bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    text: String,
    signatures: Vec<NoteSignature>,
}

/// One signature line. Lines of unknown keys and kinds are kept as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoteSignature {
    /// Name of the key.
    pub name: String,
    /// The first four bytes of its id.
    pub key_id: [u8; 4],
    /// What follows; its meaning depends on the kind of key.
    pub signature: Vec<u8>,
}

/// Why a note is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// Not the shape of the specification.
    #[error("not a signed note: {0}")]
    Shape(&'static str),
    /// Not a verifier key `name+id+base64`.
    #[error("`{0}` is not a verifier key: expected `name+<8 hex digits>+<base64>` of an Ed25519 key")]
    Key(String),
    /// No signature by the key.
    #[error("the note has no signature by `{0}`")]
    Unsigned(String),
    /// A signature that claims to be by the key does not hold.
    #[error("the signature by `{0}` does not hold")]
    Signature(String),
    /// The private key is not a PKCS#8 Ed25519 key.
    #[error("not a PKCS#8 private key for Ed25519")]
    Private,
}

fn good_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_NAME_BYTES
        && !name.contains('+')
        && !name.chars().any(|letter| letter.is_whitespace() || letter.is_control())
}

fn good_text(text: &str) -> bool {
    text.ends_with('\n') && !text.chars().any(|letter| letter != '\n' && (letter < ' ' || letter == '\u{7f}'))
}

impl Note {
    /// A note without signatures. The text ends with a newline and has no other controls.
    pub fn new(text: String) -> Result<Self, NoteError> {
        if text.len() > MAX_NOTE_BYTES {
            return Err(NoteError::Shape("too long"));
        }
        if !good_text(&text) {
            return Err(NoteError::Shape("the text must end with a newline and hold no other control characters"));
        }
        Ok(Self { text, signatures: Vec::new() })
    }

    /// Reads a note. Signatures are not checked, see [`Note::verify`].
    pub fn parse(note: &str) -> Result<Self, NoteError> {
        use NoteError::Shape;
        if note.len() > MAX_NOTE_BYTES {
            return Err(Shape("too long"));
        }
        // The last empty line separates, so a text may hold empty lines.
        let at = note.rfind("\n\n").ok_or(Shape("no empty line before the signatures"))?;
        let mut parsed = Self::new(note[..=at].to_owned())?;
        let lines = note[at + 2..].strip_suffix('\n').ok_or(Shape("the last line has no newline"))?;
        for line in lines.split('\n') {
            let rest = line.strip_prefix("\u{2014} ").ok_or(Shape("a signature line does not start with a dash"))?;
            let (name, data) = rest.split_once(' ').ok_or(Shape("a signature line has no signature"))?;
            let data = STANDARD.decode(data).map_err(|_| Shape("a signature is not base64"))?;
            let (key_id, signature) = data.split_first_chunk::<4>().ok_or(Shape("a signature is too short"))?;
            if !good_name(name) || signature.is_empty() {
                return Err(Shape("a signature line has a bad name or no signature"));
            }
            parsed.push(NoteSignature { name: name.to_owned(), key_id: *key_id, signature: signature.to_vec() })?;
        }
        Ok(parsed)
    }

    /// The text that is signed, its newline included.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The signatures in order.
    pub fn signatures(&self) -> &[NoteSignature] {
        &self.signatures
    }

    /// Adds a signature line, a witness's cosignature say.
    pub fn push(&mut self, signature: NoteSignature) -> Result<(), NoteError> {
        if self.signatures.len() == MAX_SIGNATURES {
            return Err(NoteError::Shape("too many signatures"));
        }
        if !good_name(&signature.name) {
            return Err(NoteError::Shape("a signature line has a bad name or no signature"));
        }
        self.signatures.push(signature);
        Ok(())
    }

    /// Adds the signature of an Ed25519 key, made by `sign` over the text.
    pub fn sign_with<E>(
        &mut self,
        key: &VerifierKey,
        sign: impl FnOnce(&[u8]) -> Result<Vec<u8>, E>,
    ) -> Result<Result<(), NoteError>, E> {
        let signature = sign(self.text.as_bytes())?;
        Ok(self.push(NoteSignature { name: key.name.clone(), key_id: key.key_id(), signature }))
    }

    /// Adds the signature of `signer`.
    pub fn sign(&mut self, signer: &NoteSigner) -> Result<(), NoteError> {
        let signature = signer.pair.sign(self.text.as_bytes()).as_ref().to_vec();
        self.push(NoteSignature { name: signer.key.name.clone(), key_id: signer.key.key_id(), signature })
    }

    /// Checks that `key` signed the text. A second line that claims to be by the same key is
    /// refused if it is wrong.
    pub fn verify(&self, key: &VerifierKey) -> Result<(), NoteError> {
        let mut found = false;
        for line in self.signatures.iter().filter(|line| line.name == key.name && line.key_id == key.key_id()) {
            if !key.check(&self.text, &line.signature) {
                return Err(NoteError::Signature(key.name.clone()));
            }
            found = true;
        }
        if found { Ok(()) } else { Err(NoteError::Unsigned(key.name.clone())) }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.text)?;
        for line in &self.signatures {
            let data = [&line.key_id[..], &line.signature].concat();
            writeln!(f, "\u{2014} {} {}", line.name, STANDARD.encode(data))?;
        }
        Ok(())
    }
}

/// A public key with its name: `name+<id>+<base64 of kind and key>`. Kinds: Ed25519 (1) and
/// Ed25519 cosignatures with a time (4, <https://c2sp.org/tlog-cosignature>).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifierKey {
    name: String,
    kind: u8,
    key: [u8; 32],
}

impl VerifierKey {
    /// The key of a log. The name has no white space and no `+`.
    pub fn ed25519(name: &str, key: [u8; 32]) -> Result<Self, NoteError> {
        Self::new(name, ED25519_TYPE, key)
    }

    /// The key of a witness.
    pub fn witness(name: &str, key: [u8; 32]) -> Result<Self, NoteError> {
        Self::new(name, COSIGNATURE_TYPE, key)
    }

    fn new(name: &str, kind: u8, key: [u8; 32]) -> Result<Self, NoteError> {
        if good_name(name) {
            Ok(Self { name: name.to_owned(), kind, key })
        } else {
            Err(NoteError::Key(name.chars().take(100).collect()))
        }
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The 32 bytes of the Ed25519 key.
    pub const fn key(&self) -> &[u8; 32] {
        &self.key
    }

    /// Whether it belongs to a witness.
    pub const fn is_witness(&self) -> bool {
        self.kind == COSIGNATURE_TYPE
    }

    /// SHA-256 of name, newline, kind and key: the id before it is cut to four bytes, which is
    /// the log id of Rekor v2.
    pub fn log_id(&self) -> [u8; 32] {
        Sha256::new()
            .chain_update(&self.name)
            .chain_update(b"\n")
            .chain_update([self.kind])
            .chain_update(self.key)
            .finalize()
            .into()
    }

    /// The id in signature lines.
    pub fn key_id(&self) -> [u8; 4] {
        let [a, b, c, d, ..] = self.log_id();
        [a, b, c, d]
    }

    fn check(&self, text: &str, signature: &[u8]) -> bool {
        let key = UnparsedPublicKey::new(&ED25519, &self.key);
        if self.kind == ED25519_TYPE {
            return key.verify(text.as_bytes(), signature).is_ok();
        }
        let Some((time, signature)) = signature.split_first_chunk::<8>() else { return false };
        key.verify(&cosigned(u64::from_be_bytes(*time), text), signature).is_ok()
    }
}

/// What a witness signs: the time in Unix seconds and the text of the note. The signature in
/// the line is the time in 8 bytes, most significant first, then the Ed25519 signature.
pub fn cosigned(unix_seconds: u64, text: &str) -> Vec<u8> {
    format!("cosignature/v1\ntime {unix_seconds}\n{text}").into_bytes()
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = u32::from_be_bytes(self.key_id());
        write!(f, "{}+{id:08x}+{}", self.name, STANDARD.encode([&[self.kind][..], &self.key].concat()))
    }
}

impl FromStr for VerifierKey {
    type Err = NoteError;

    fn from_str(text: &str) -> Result<Self, NoteError> {
        let bad = || NoteError::Key(text.chars().take(100).collect());
        if text.len() > 512 {
            return Err(bad());
        }
        // Base64 may hold `+`, names may not.
        let (name, rest) = text.split_once('+').ok_or_else(bad)?;
        let (_, data) = rest.split_once('+').ok_or_else(bad)?;
        let data = STANDARD.decode(data).map_err(|_| bad())?;
        let (kind, key) = data.split_first().ok_or_else(bad)?;
        if ![ED25519_TYPE, COSIGNATURE_TYPE].contains(kind) {
            return Err(bad());
        }
        let key = Self::new(name, *kind, key.try_into().map_err(|_| bad())?)?;
        if key.to_string() == text { Ok(key) } else { Err(bad()) }
    }
}

/// A private key with its name. `Debug` shows the public half.
pub struct NoteSigner {
    pair: Ed25519KeyPair,
    key: VerifierKey,
}

impl NoteSigner {
    /// From an Ed25519 key in PKCS#8 DER.
    pub fn from_pkcs8(name: &str, der: &[u8]) -> Result<Self, NoteError> {
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).map_err(|_| NoteError::Private)?;
        let public = pair.public_key().as_ref().try_into().map_err(|_| NoteError::Private)?;
        Ok(Self { key: VerifierKey::ed25519(name, public)?, pair })
    }

    /// The public half.
    pub const fn key(&self) -> &VerifierKey {
        &self.key
    }
}

impl fmt::Debug for NoteSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NoteSigner({})", self.key)
    }
}
