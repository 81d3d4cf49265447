//! The evidence of a deployment, verified offline with the audit crate.

use adamant_audit::{Capsule, Trust, verify};

use super::Claim;

/// Verifies that the capsule shows, under the trust file, that exactly this rollout with this
/// artifact was deployed to this environment. What `adamant` gives to [`super::instance`].
pub fn verify_capsule(claim: &Claim) -> Result<(), String> {
    let trust = Trust::parse(&claim.trust).map_err(|e| e.to_string())?;
    let capsule = Capsule::parse(&claim.evidence).map_err(|e| e.to_string())?;
    let report = verify(&capsule, &trust).map_err(|e| e.to_string())?;
    let shown = &report.deployment;
    if (shown.project.as_str(), shown.environment.as_str()) != (claim.project.as_str(), claim.environment.as_str()) {
        return Err(format!(
            "the capsule is about {} in {}, not about {} in {}",
            shown.project, shown.environment, claim.project, claim.environment
        ));
    }
    if shown.rollout != claim.rollout {
        return Err(format!("the capsule is about rollout {}, not {}", shown.rollout, claim.rollout));
    }
    if !shown.artifacts.iter().any(|artifact| artifact.digest == claim.manifest) {
        return Err(format!("the capsule does not name artifact {}", claim.manifest));
    }
    Ok(())
}
