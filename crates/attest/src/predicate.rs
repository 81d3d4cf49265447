//! What a fact can say. One type a predicate; URIs are fixed here and never edited.
//!
//! The ledger adds four members to the predicate object of every statement it records, so no
//! type here declares them: `recordedAt` (RFC 3339, UTC, seconds, the server's assertion) and,
//! for a fact that belongs to a chain, `chain` (its name), `sequence` (from 1, without gaps)
//! and `previous` (digest of the statement bytes before it in the chain, absent at 1).

use adamant_digest::{Digest, Sha512};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Where Adamant's own predicates live: `<PREFIX>/<name>/v1`.
pub const PREFIX: &str = "https://adamant.dev/predicate";

macro_rules! predicates {
    ($($(#[$doc:meta])* $name:ident($ty:ty) = $uri:expr;)*) => {
        /// A predicate with its type.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Predicate { $($(#[$doc])* $name($ty),)* }

        impl Predicate {
            /// The type URI, as a statement's `predicateType` carries it.
            pub const fn uri(&self) -> &'static str {
                match self { $(Self::$name(_) => $uri,)* }
            }

            /// The predicate as JSON, without the members the ledger adds.
            pub fn to_value(&self) -> Result<Value, serde_json::Error> {
                match self { $(Self::$name(inner) => serde_json::to_value(inner),)* }
            }

            /// Reads a predicate by its type URI; `None` if the URI is not one of these.
            pub fn from_value(uri: &str, value: &Value) -> Option<Result<Self, serde_json::Error>> {
                $(if uri == $uri {
                    return Some(<$ty>::deserialize(value).map(Self::$name));
                })*
                None
            }
        }
    };
}

predicates! {
    /// A name was bound to a digest, for ever.
    Binding(Binding) = "https://adamant.dev/predicate/binding/v1";
    /// A lock was accepted: all its inputs are kept.
    Lock(Lock) = "https://adamant.dev/predicate/lock/v1";
    /// How an artifact was built.
    Provenance(Provenance) = "https://slsa.dev/provenance/v1";
    /// A decision or a rebuild.
    Vsa(Vsa) = "https://slsa.dev/verification_summary/v1";
    /// An environment was told to run something.
    Deployment(Deployment) = "https://adamant.dev/predicate/deployment/v1";
    /// What a host saw of a deployment.
    Observation(Observation) = "https://adamant.dev/predicate/observation/v1";
    /// An environment's configuration or rules changed.
    Configuration(Configuration) = "https://adamant.dev/predicate/configuration/v1";
    /// A key was introduced or revoked.
    Key(Key) = "https://adamant.dev/predicate/key/v1";
    /// Somebody offered another digest for a bound name.
    Divergence(Divergence) = "https://adamant.dev/predicate/divergence/v1";
    /// Something was refused or failed for good.
    Rejection(Rejection) = "https://adamant.dev/predicate/rejection/v1";
    /// A pointer was moved.
    Pointer(Pointer) = "https://adamant.dev/predicate/pointer/v1";
    /// A named token was made or revoked.
    Grant(Grant) = "https://adamant.dev/predicate/grant/v1";
    /// Somebody asked for an erasure, or took that back.
    ErasureRequest(ErasureRequest) = "https://adamant.dev/predicate/erasure-request/v1";
    /// A blob was erased: its tombstone.
    Erasure(Erasure) = "https://adamant.dev/predicate/erasure/v1";
    /// A named token of a person was made or revoked.
    PersonalGrant(PersonalGrant) = "https://adamant.dev/predicate/grant/v2";
    /// Somebody asked for the erasure of bytes by all their names, or took that back.
    ErasureRequestV2(ErasureRequestV2) = "https://adamant.dev/predicate/erasure-request/v2";
    /// Bytes were erased under all their names: their tombstone.
    ErasureV2(ErasureV2) = "https://adamant.dev/predicate/erasure/v2";
    /// Stored bytes were found to be wrong, or are right again.
    Damage(Damage) = "https://adamant.dev/predicate/damage/v1";
}

/// The kinds of names that are bound once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BindingKind {
    /// `repository:tag` → manifest digest.
    Tag,
    /// `project@commit` → digest of the commit's tree. Chain `project/<project>`; the sequence
    /// in that chain is the release number.
    Commit,
    /// `project@lock digest` → lock digest.
    Lock,
    /// Build key → digest of the output.
    Output,
    /// `project@commit/artifact/platform` → manifest digest.
    Artifact,
    /// `project/number` → digest of the release document.
    Release,
    /// `ecosystem:name@version` → digest of the upstream bytes at first sight.
    Upstream,
}

impl BindingKind {
    /// The word used in JSON and SQL.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tag => "tag",
            Self::Commit => "commit",
            Self::Lock => "lock",
            Self::Output => "output",
            Self::Artifact => "artifact",
            Self::Release => "release",
            Self::Upstream => "upstream",
        }
    }
}

impl std::str::FromStr for BindingKind {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Tag, Self::Commit, Self::Lock, Self::Output, Self::Artifact, Self::Release, Self::Upstream]
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| format!("`{text}` is not a kind of binding"))
    }
}

/// See [`Predicate::Binding`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Binding {
    /// What kind of name.
    pub kind: BindingKind,
    /// The name, in the form its kind gives.
    pub name: String,
    /// What it is bound to.
    pub digest: Digest,
    /// Who bound it, as the server authenticated them.
    pub by: String,
    /// More about it (a commit's git ids, say); part of the record, not of the binding.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub detail: Value,
}

/// See [`Predicate::Lock`]. Each input is also an `upstream` binding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lock {
    /// The project.
    pub project: String,
    /// Digest of the combined lock (`adamant.lock` and native locks, see `recipe`).
    pub lock: Digest,
    /// Who pushed or wrote it.
    pub by: String,
    /// Every input byte.
    pub inputs: Vec<Input>,
}

/// One input of a lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// `ecosystem:name@version`, the name of the `upstream` binding.
    pub name: String,
    /// Digest of the bytes as fetched.
    pub digest: Digest,
    /// Their length in bytes; 0 if the lock does not say.
    #[serde(default)]
    pub size: u64,
}

/// SLSA provenance v1, <https://slsa.dev/spec/v1.2/build-provenance>.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Provenance {
    /// What was to be built.
    pub build_definition: BuildDefinition,
    /// How it went.
    pub run_details: RunDetails,
}

/// See [`Provenance`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BuildDefinition {
    /// `https://adamant.dev/build/v1`.
    pub build_type: String,
    /// What the pusher controls: project, commit, artifact, recipe.
    pub external_parameters: Value,
    /// What the platform fixes: build key, build ABI, epoch.
    pub internal_parameters: Value,
    /// Source, lock and every input.
    pub resolved_dependencies: Vec<ResourceDescriptor>,
}

/// in-toto ResourceDescriptor, the members used here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResourceDescriptor {
    /// Name, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// URI, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uri: Option<String>,
    /// Algorithm → lower-case hex.
    pub digest: std::collections::BTreeMap<String, String>,
}

impl ResourceDescriptor {
    /// A descriptor by its sha256.
    pub fn sha256(name: Option<String>, uri: Option<String>, digest: Digest) -> Self {
        Self { name, uri, digest: [("sha256".to_owned(), digest.hex())].into() }
    }
}

/// See [`Provenance`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunDetails {
    /// Who built.
    pub builder: Builder,
    /// When and under which id.
    pub metadata: Metadata,
}

/// See [`RunDetails`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Builder {
    /// URI of the builder: `https://<origin>/builder`.
    pub id: String,
}

/// See [`RunDetails`]. Times are RFC 3339.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// Unique per run.
    pub invocation_id: String,
    /// When the build started.
    pub started_on: String,
    /// When it ended.
    pub finished_on: String,
}

/// SLSA verification summary v1. Used for promotion decisions (`resourceUri` is the
/// environment) and for rebuilds (`resourceUri` is the artifact).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Vsa {
    /// Who decided.
    pub verifier: Verifier,
    /// RFC 3339.
    pub time_verified: String,
    /// `adamant:environment/<project>/<environment>` or `adamant:rebuild/<project>/<artifact>`.
    pub resource_uri: String,
    /// The rules that were applied, by digest of their canonical JSON.
    pub policy: ResourceDescriptor,
    /// Digests of the statements the decision rests on.
    pub input_attestations: Vec<ResourceDescriptor>,
    /// `PASSED` or `FAILED`.
    pub verification_result: String,
    /// For a rebuild `["ADAMANT_REBUILT"]`, for a promotion the rules that held.
    pub verified_levels: Vec<String>,
    /// Why, in words; for a divergence the first differing path.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub adamant_detail: Value,
}

/// See [`Vsa`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verifier {
    /// URI of the verifier: `https://<origin>/control`.
    pub id: String,
}

/// Why an environment runs what it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Automatic, after a push.
    Deploy,
    /// Asked for by a person.
    Promote,
    /// Back to an earlier deployment.
    Rollback,
}

/// See [`Predicate::Deployment`]. Chain `environment/<project>/<environment>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Deployment {
    /// The project.
    pub project: String,
    /// The environment.
    pub environment: String,
    /// Why.
    pub action: Action,
    /// `project/number`.
    pub release: String,
    /// Digest of the release document.
    pub release_digest: Digest,
    /// Digest of the rollout document: release, configuration, policy and target in one hash.
    pub rollout: Digest,
    /// The artifacts that run: name and manifest digest.
    pub artifacts: Vec<ArtifactRef>,
    /// Digest of the configuration revision.
    pub configuration: Digest,
    /// Digest of the rules.
    pub policy: Digest,
    /// Digest of the statement that allowed it; absent for deploys and rollbacks that need none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<Digest>,
    /// For a rollback: the sequence number it returns to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub returns_to: Option<u64>,
    /// Who asked.
    pub by: String,
    /// Why, if they said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// An artifact of a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactRef {
    /// Name in the recipe.
    pub name: String,
    /// `linux/amd64`.
    pub platform: String,
    /// Manifest digest.
    pub digest: Digest,
}

/// What a host saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Passed its health check and receives traffic.
    Healthy,
    /// Did not become healthy; what ran before runs on.
    Failed,
    /// Something differs from what was deployed.
    Drift,
}

/// See [`Predicate::Observation`]. Chain `observation/<project>/<environment>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    /// The project.
    pub project: String,
    /// The environment.
    pub environment: String,
    /// Sequence number of the deployment in its chain.
    pub deployment: u64,
    /// Digest of the rollout document seen.
    pub rollout: Digest,
    /// What was seen.
    pub state: State,
    /// In words: time to healthy, the failed check, the file that differs.
    pub detail: String,
}

/// See [`Predicate::Configuration`]. Chain `configuration/<project>/<environment>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Configuration {
    /// The project.
    pub project: String,
    /// The environment.
    pub environment: String,
    /// Digest of the revision's canonical JSON, kept as a blob.
    pub revision: Digest,
    /// Who changed it.
    pub by: String,
}

/// Which key signs what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Ed25519; signs checkpoints alone.
    Log,
    /// ECDSA P-256; signs provenance and rebuilds.
    Builder,
    /// ECDSA P-256; signs bindings, decisions, deployments, keys.
    Control,
    /// ECDSA P-256; signs observations.
    Host,
}

impl Role {
    /// The word used in JSON and file names.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Builder => "builder",
            Self::Control => "control",
            Self::Host => "host",
        }
    }
}

/// See [`Predicate::Key`]. Chain `keys`. Signed by the control key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Key {
    /// What it may sign.
    pub role: Role,
    /// OpenSSH fingerprint, `SHA256:…` without padding.
    pub keyid: String,
    /// Base64 of the DER SubjectPublicKeyInfo.
    pub public_key: String,
    /// `introduced` or `revoked`.
    pub action: String,
}

/// See [`Predicate::Divergence`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Divergence {
    /// What kind of name.
    pub kind: BindingKind,
    /// The name.
    pub name: String,
    /// What it is bound to, still.
    pub bound: Digest,
    /// What was offered.
    pub offered: Digest,
    /// Who offered it.
    pub by: String,
}

/// See [`Predicate::Rejection`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rejection {
    /// What was refused (`push shop@<commit>`, `promote shop/214 staging`).
    pub object: String,
    /// Why.
    pub reason: String,
    /// Whose request it was.
    pub by: String,
}

/// See [`Predicate::Pointer`]. A pointer is no bound name: it may lead elsewhere later, and its chain
/// `pointer/<name>` is its history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pointer {
    /// `repository:tag`.
    pub name: String,
    /// Where it leads from now on.
    pub digest: Digest,
    /// Where it led before; `None` the first time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Digest>,
    /// Who moved it.
    pub by: String,
}

/// See [`Predicate::Grant`]. Chain `grants`. A name is given once: a revoked one is not given again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Name of the token, `ci`.
    pub name: String,
    /// `granted` or `revoked`.
    pub action: String,
    /// Digest of the secret, which has at least 128 random bits and is kept nowhere.
    pub secret: Digest,
    /// What it allows, each `REPOSITORIES:ACTIONS`; empty when revoked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<String>,
    /// When it ends by itself, RFC 3339; `None`: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    /// Who made or revoked it.
    pub by: String,
}

/// A step before an erasure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErasureStep {
    /// Asked for; somebody else may approve.
    Requested,
    /// Taken back.
    Withdrawn,
}

/// See [`Predicate::ErasureRequest`]. Chain `erasure/<digest>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ErasureRequest {
    /// What is to go.
    pub digest: Digest,
    /// Asked for, or taken back.
    pub step: ErasureStep,
    /// Digest of the salted document with the reason, which can be erased itself.
    pub reason: Digest,
    /// Who.
    pub by: String,
}

/// See [`Predicate::Erasure`]. Last of the chain `erasure/<digest>`; recorded before the bytes go.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Erasure {
    /// What was erased: every copy of the bytes that hash to this.
    pub digest: Digest,
    /// Their length in bytes.
    pub size_bytes: u64,
    /// Digest of the salted document with the reason, which can be erased itself.
    pub reason: Digest,
    /// Who asked.
    pub requested_by: String,
    /// Who approved: somebody else.
    pub approved_by: String,
}

/// See [`Predicate::PersonalGrant`]. Chain `grants`, like [`Grant`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PersonalGrant {
    /// What a grant says.
    #[serde(flatten)]
    pub grant: Grant,
    /// Whose token it is: several of one person count as one.
    pub person: String,
}

/// The names of the same bytes beside their sha256.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Names {
    /// Their sha512.
    pub sha512: Sha512,
    /// The id that git gives a file of them: sha1 in hex.
    pub git_blob: String,
}

/// See [`Predicate::ErasureRequestV2`]. Chain `erasure/<digest>`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ErasureRequestV2 {
    /// What is to go.
    pub digest: Digest,
    /// Its other names.
    pub names: Names,
    /// Length in bytes.
    pub size_bytes: u64,
    /// Asked for, or taken back.
    pub step: ErasureStep,
    /// Digest of the salted document with the reason, which can be erased itself.
    pub reason: Digest,
    /// Who.
    pub by: String,
}

/// See [`Predicate::ErasureV2`]. Last of the chain `erasure/<digest>`; recorded before the bytes go.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ErasureV2 {
    /// What an erasure says.
    #[serde(flatten)]
    pub erasure: Erasure,
    /// Its other names.
    pub names: Names,
}

/// See [`Predicate::Damage`]. Chain `damage`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    /// The name of the bytes.
    pub digest: Digest,
    /// `found` or `healed`.
    pub state: String,
    /// What noticed it: `read` or `scrub`; `mirror` if the right bytes came from another registry.
    pub how: String,
    /// What the stored bytes hash to; absent when healed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found: Option<Digest>,
}

/// Names that a statement binds, first the one that decides whether it was recorded before.
/// Pure: the ledger uses it to append, `fsck` and `audit` to check.
pub fn binds(predicate: &Predicate) -> Vec<(BindingKind, String, Digest)> {
    match predicate {
        Predicate::Binding(b) => vec![(b.kind, b.name.clone(), b.digest)],
        Predicate::Lock(lock) => {
            let own = (BindingKind::Lock, format!("{}@{}", lock.project, lock.lock), lock.lock);
            let inputs = lock.inputs.iter().map(|i| (BindingKind::Upstream, i.name.clone(), i.digest));
            std::iter::once(own).chain(inputs).collect()
        }
        _ => Vec::new(),
    }
}

/// Who asked for a fact, where its predicate says so.
pub fn actor(predicate: &Predicate) -> &str {
    match predicate {
        Predicate::Binding(p) => &p.by,
        Predicate::Lock(p) => &p.by,
        Predicate::Deployment(p) => &p.by,
        Predicate::Configuration(p) => &p.by,
        Predicate::Divergence(p) => &p.by,
        Predicate::Rejection(p) => &p.by,
        Predicate::Pointer(p) => &p.by,
        Predicate::Grant(p) => &p.by,
        Predicate::PersonalGrant(p) => &p.grant.by,
        Predicate::ErasureRequest(p) => &p.by,
        Predicate::ErasureRequestV2(p) => &p.by,
        Predicate::ErasureV2(p) => &p.erasure.approved_by,
        Predicate::Erasure(p) => &p.approved_by,
        Predicate::Provenance(_)
        | Predicate::Vsa(_)
        | Predicate::Observation(_)
        | Predicate::Key(_)
        | Predicate::Damage(_) => "",
    }
}
