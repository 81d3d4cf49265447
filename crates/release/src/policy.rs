//! The order of environments and their rules.

use serde::{Deserialize, Serialize};

use crate::Document;
use crate::documents::{name, version};

/// A condition of promotion, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// The release was healthy in the environment before.
    Previous,
    /// A rebuild of every artifact gave the same bytes.
    Rebuilt,
}

impl Rule {
    /// The name in policies and decisions.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Previous => "previous",
            Self::Rebuilt => "rebuilt",
        }
    }
}

/// An environment and what it asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// Whether a push deploys here by itself.
    pub automatic: bool,
    /// Its name.
    pub name: String,
    /// What must hold before a release may come here; sorted.
    pub rules: Vec<Rule>,
}

/// Environments in order of promotion. JSON: `{"environments":[{"automatic","name",
/// "rules":["previous","rebuilt"]}],"version":1}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Always 1.
    pub version: u32,
    /// From the first to the last.
    pub environments: Vec<Environment>,
}

/// No environment has that name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("environment `{name}` is not known; the environments are {}", known.join(", "))]
pub struct UnknownEnvironment {
    /// What was asked for.
    pub name: String,
    /// What there is, in order.
    pub known: Vec<String>,
}

impl Default for Policy {
    /// `dev` by itself, then `staging` and `prod`, each after the one before and a rebuild.
    fn default() -> Self {
        let asked = |name: &str| Environment {
            automatic: false,
            name: name.to_owned(),
            rules: vec![Rule::Previous, Rule::Rebuilt],
        };
        let dev = Environment { automatic: true, name: "dev".to_owned(), rules: Vec::new() };
        Self { version: 1, environments: vec![dev, asked("staging"), asked("prod")] }
    }
}

impl Policy {
    /// The environment called `name`.
    pub fn environment(&self, name: &str) -> Result<&Environment, UnknownEnvironment> {
        self.environments.iter().find(|e| e.name == name).ok_or_else(|| self.unknown(name))
    }

    /// The environment before the one called `name`, if it is not the first.
    pub fn previous(&self, name: &str) -> Result<Option<&Environment>, UnknownEnvironment> {
        let position = self.environments.iter().position(|e| e.name == name).ok_or_else(|| self.unknown(name))?;
        Ok(position.checked_sub(1).map(|before| &self.environments[before]))
    }

    fn unknown(&self, name: &str) -> UnknownEnvironment {
        let known = self.environments.iter().map(|e| e.name.clone()).collect();
        UnknownEnvironment { name: crate::documents::excerpt(name), known }
    }
}

impl Document for Policy {
    const NAME: &'static str = "policy";

    fn check(&self) -> Result<(), String> {
        version(self.version)?;
        if self.environments.is_empty() || self.environments.len() > 50 {
            return Err(format!("{} environments, expected 1 to 50", self.environments.len()));
        }
        for (position, environment) in self.environments.iter().enumerate() {
            name("environment", &environment.name)?;
            if self.environments[..position].iter().any(|e| e.name == environment.name) {
                return Err(format!("environment `{}` is there twice", environment.name));
            }
            if !environment.rules.windows(2).all(|pair| pair[0] < pair[1]) {
                return Err(format!("the rules of `{}` are not sorted or not unique", environment.name));
            }
            if position == 0 && environment.rules.contains(&Rule::Previous) {
                return Err(format!("`{}` is the first environment, so `previous` can never hold", environment.name));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_is_golden() {
        let bytes = Policy::default().encode().unwrap().into_bytes();
        assert_eq!(
            String::from_utf8(bytes.clone()).unwrap(),
            "{\"environments\":[{\"automatic\":true,\"name\":\"dev\",\"rules\":[]},\
             {\"automatic\":false,\"name\":\"staging\",\"rules\":[\"previous\",\"rebuilt\"]},\
             {\"automatic\":false,\"name\":\"prod\",\"rules\":[\"previous\",\"rebuilt\"]}],\"version\":1}"
        );
        assert_eq!(Policy::parse(&bytes).unwrap(), Policy::default());
    }

    #[test]
    fn refuses_policies_that_cannot_hold() {
        let mut policy = Policy::default();
        policy.environments[0].rules = vec![Rule::Previous];
        assert!(policy.encode().unwrap_err().to_string().contains("first environment"));
        let mut policy = Policy::default();
        policy.environments[1].name = "dev".into();
        assert!(policy.encode().is_err());
        let text = String::from_utf8(Policy::default().encode().unwrap().into_bytes()).unwrap();
        assert!(Policy::parse(text.replace("rebuilt", "unheard").as_bytes()).is_err());
    }

    #[test]
    fn unknown_environment_lists_the_known() {
        let error = Policy::default().environment("production").unwrap_err();
        assert_eq!(error.to_string(), "environment `production` is not known; the environments are dev, staging, prod");
        assert_eq!(Policy::default().previous("prod").unwrap().unwrap().name, "staging");
        assert!(Policy::default().previous("dev").unwrap().is_none());
    }
}
