//! What a release is, when it may go to an environment, and what a deployer has to do.
//!
//! Pure decisions over values: no I/O, no clock, no randomness, no async. The four documents
//! ([`Release`], [`Rollout`], [`Configuration`], [`Policy`]) are named by the digest of their
//! canonical JSON; parsing accepts those exact bytes and nothing else.

mod document;
mod documents;
mod history;
mod plan;
mod policy;
mod promotion;

pub use document::{Document, DocumentError, MAX_DOCUMENT_BYTES};
pub use documents::{Configuration, Release, Rollout, Service, Target, valid_name};
pub use history::{Automation, Past, RollbackError, decide_automation, decide_rollback, hold};
pub use plan::{Desired, Instance, InstanceState, Observed, PlanError, Step, plan};
pub use policy::{Environment, Policy, Rule, UnknownEnvironment};
pub use promotion::{Decision, Failed, Health, PromotionInput, Rebuild, decide_promotion};
