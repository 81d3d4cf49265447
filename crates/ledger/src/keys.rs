//! The server's keys, one for each role.

use std::fmt;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use adamant_attest::predicate::{Key, Predicate, Role};
use adamant_attest::{Algorithm, PublicKey, SigningKey};
use adamant_digest::Digest;
use adamant_store::{Chain, Fact, Subject};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::error::KeysError;
use crate::files;

/// The chain of key facts.
pub(crate) const KEY_CHAIN: &str = "keys";

/// Order in which a new ledger introduces them: the control key first, as the root that
/// introduces itself and the others.
pub(crate) const ROLES: [Role; 4] = [Role::Control, Role::Log, Role::Builder, Role::Host];

/// A private key for each role. Cheap to clone; `Debug` shows no secret.
#[derive(Clone)]
pub struct Keys(Arc<[SigningKey; 4]>);

/// What a trust file says: enough to check everything the ledger gives out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustValues {
    /// Origin of the log.
    pub origin: String,
    /// The log's key as a C2SP verifier key, `<origin>+<id>+<base64>`.
    pub log: String,
    /// The control key that introduces all others.
    pub root: PublicKey,
}

impl Keys {
    /// Reads the keys in `dir` (files `log`, `builder`, `control`, `host`: PKCS#8 PEM, mode
    /// 0600) and makes those that are missing, durably. Blocking.
    pub fn open_or_create(dir: &Path) -> Result<Self, KeysError> {
        let failed = |source| KeysError::Io { path: dir.to_owned(), source };
        if !dir.is_dir() {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
            files::sync_dir(files::parent(dir)).map_err(failed)?;
        }
        let [control, log, builder, host] = ROLES.map(|role| one(dir, role));
        Ok(Self(Arc::new([control?, log?, builder?, host?])))
    }

    /// Reads the keys in `dir` and makes none. Blocking.
    pub fn open(dir: &Path) -> Result<Self, KeysError> {
        let [control, log, builder, host] = ROLES.map(|role| read(&dir.join(role.as_str()), role));
        Ok(Self(Arc::new([control?, log?, builder?, host?])))
    }

    /// New keys that are kept nowhere, for tests and tours.
    pub fn generate() -> Result<Self, adamant_attest::KeyError> {
        let [control, log, builder, host] = ROLES.map(|role| SigningKey::generate(algorithm(role)));
        Ok(Self(Arc::new([control?, log?, builder?, host?])))
    }

    /// The public half of a role's key.
    pub fn public(&self, role: Role) -> &PublicKey {
        self.signing(role).public()
    }

    pub(crate) fn signing(&self, role: Role) -> &SigningKey {
        let [control, log, builder, host] = &*self.0;
        match role {
            Role::Control => control,
            Role::Log => log,
            Role::Builder => builder,
            Role::Host => host,
        }
    }

    /// The facts that introduce them.
    pub(crate) fn facts(&self) -> Vec<Fact> {
        ROLES.iter().map(|role| introduction(*role, self.public(*role))).collect()
    }

    /// A bare host-like name made from the log key.
    pub(crate) fn origin(&self) -> String {
        format!("adamant-{}.log", Digest::of(&self.public(Role::Log).spki_der()).short())
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(SigningKey::public)).finish()
    }
}

fn introduction(role: Role, key: &PublicKey) -> Fact {
    let der = key.spki_der();
    let predicate = Predicate::Key(Key {
        role,
        keyid: key.keyid().to_owned(),
        public_key: STANDARD.encode(&der),
        action: "introduced".to_owned(),
    });
    Fact {
        role: Role::Control,
        subject: vec![Subject { name: format!("{} key {}", role.as_str(), key.keyid()), digest: Digest::of(&der) }],
        predicate,
        chain: Some(Chain { name: KEY_CHAIN.to_owned(), expect: None }),
    }
}

/// The scheme a role signs with.
pub(crate) const fn algorithm(role: Role) -> Algorithm {
    match role {
        Role::Log => Algorithm::Ed25519,
        Role::Builder | Role::Control | Role::Host => Algorithm::EcdsaP256,
    }
}

fn one(dir: &Path, role: Role) -> Result<SigningKey, KeysError> {
    let path = dir.join(role.as_str());
    match std::fs::metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = SigningKey::generate(algorithm(role))
                .map_err(|source| KeysError::Key { path: path.clone(), source })?;
            match files::create(&path, key.secret_pem().as_bytes(), 0o600) {
                // Somebody else was first: theirs is the key.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => other.map_err(|source| KeysError::Io { path: path.clone(), source })?,
            }
            tracing::info!(role = role.as_str(), keyid = key.public().keyid(), "made a key");
        }
        // Whatever else is wrong with it, reading says.
        _ => {}
    }
    read(&path, role)
}

fn read(path: &Path, role: Role) -> Result<SigningKey, KeysError> {
    let failed = |source| KeysError::Io { path: path.to_owned(), source };
    let mode = std::fs::metadata(path).map_err(failed)?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeysError::Open { path: path.to_owned(), mode });
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let key = SigningKey::from_pem(&text).map_err(|source| KeysError::Key { path: path.to_owned(), source })?;
    if key.public().algorithm() != algorithm(role) {
        return Err(KeysError::Scheme { path: path.to_owned() });
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makes_keys_once_and_keeps_them_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        let first = Keys::open_or_create(&path).unwrap();
        let second = Keys::open_or_create(&path).unwrap();
        for role in ROLES {
            assert_eq!(first.public(role), second.public(role));
            assert_eq!(first.public(role).algorithm(), algorithm(role));
            let mode = std::fs::metadata(path.join(role.as_str())).unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, 0o600);
        }
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o700);
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 4);
        assert!(!format!("{first:?}").contains("PRIVATE"));
    }

    #[test]
    fn refuses_a_key_that_others_can_read_or_of_another_scheme() {
        let dir = tempfile::tempdir().unwrap();
        Keys::open_or_create(dir.path()).unwrap();
        let host = dir.path().join("host");
        std::fs::set_permissions(&host, std::fs::Permissions::from_mode(0o640)).unwrap();
        let error = Keys::open_or_create(dir.path()).unwrap_err();
        assert!(matches!(&error, KeysError::Open { mode: 0o640, .. }), "{error}");
        std::fs::remove_file(&host).unwrap();
        std::fs::copy(dir.path().join("log"), &host).unwrap();
        assert!(matches!(Keys::open_or_create(dir.path()).unwrap_err(), KeysError::Scheme { .. }));
        std::fs::write(&host, "rubbish").unwrap();
        assert!(matches!(Keys::open_or_create(dir.path()).unwrap_err(), KeysError::Key { .. }));
    }
}
