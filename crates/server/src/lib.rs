//! Composes the parts behind one port. The only place where siblings of the layer below meet.

mod auth;
mod capsule;
mod collect;
mod control;
mod doctor;
mod erase;
mod error;
mod facts;
mod fsck;
mod hosting;
mod http;
mod logs;
mod making;
mod mend;
mod metrics;
mod opening;
mod pipeline;
mod platform;
mod rate;
mod running;
mod scrub;
mod serving;
mod settings;
mod ship;
mod startup;
mod tls;
mod tokens;
mod upstream;
mod views;
mod webhooks;

pub use doctor::{Check, doctor};
pub use error::Problem;
pub use fsck::fsck;
pub use hosting::verify_evidence;
pub use opening::{AccessKey, Claim, Claimed, Proxy, claim};
pub use platform::{Config, Platform};
pub use running::{Running, down, rollback_offline, start};
pub use settings::{
    BlobSettings, DatabaseSettings, GateSettings, RegistrySettings, Settings, StoreSettings, UpstreamSettings,
    WebhookSettings,
};
