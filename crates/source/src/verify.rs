//! Checking a repository, for `fsck`.

use std::collections::HashSet;

use crate::git::one_line;
use crate::{GitError, Oid, ReadError, Repository};

/// How much is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Everything that refs reach is there.
    Connectivity,
    /// All of that, and every object hashes to its id.
    Content,
}

/// The most problems that are listed.
const PROBLEMS: usize = 100;

impl Repository {
    /// What is wrong with the repository, one line each, at most 100; nothing if all is well.
    /// Each of `commits` must be there and kept.
    pub async fn verify(&self, commits: &[Oid], depth: Depth) -> Result<Vec<String>, ReadError> {
        let mut problems = Vec::new();
        let erased = &self.0.shared.erased;
        // A link to what was erased takes two lines, of which the second one says what to.
        let (mut from, mut missed) = (None, false);
        let mut args = vec!["fsck", "--no-dangling", "--no-progress", "--no-reflogs"];
        args.push(if depth == Depth::Connectivity { "--connectivity-only" } else { "--full" });
        let git = self.0.git.within(self.0.limits.transfer_time);
        let checked = git.records(&args, &[], b'\n', |line| -> Result<(), GitError> {
            let line = one_line(&String::from_utf8_lossy(line), 300);
            if line.starts_with("broken link from") && !erased.is_empty() {
                from = Some(line);
                return Ok(());
            }
            let broken = from.take();
            if (broken.is_some() || line.starts_with("missing blob ")) && erased.named_in(&line).is_some() {
                missed = true;
                return Ok(());
            }
            problems.extend(broken.filter(|_| problems.len() < PROBLEMS));
            if problems.len() < PROBLEMS && !line.is_empty() && !line.starts_with("notice:") {
                problems.push(line);
            }
            Ok(())
        });
        match checked.await {
            // With nothing to add, it fails for what it has listed.
            Err(GitError::Failed { message, .. }) if missed && message.starts_with("ended with ") => {}
            Err(GitError::Failed { message, .. }) if problems.len() < PROBLEMS => problems.push(message),
            Ok(()) | Err(GitError::Failed { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        for blob in self.still_here(&self.0.git).await? {
            problems.push(format!("object {blob} was erased and is still here: start the server, which removes it"));
        }
        let kept: HashSet<Oid> = self.list_kept().await?.into_iter().collect();
        for part in commits.chunks(1000) {
            for (commit, found) in part.iter().zip(self.commits(part).await?) {
                if found != Some(*commit) {
                    problems.push(format!("commit {commit} is missing"));
                } else if !kept.contains(commit) {
                    problems.push(format!("commit {commit} is not kept by refs/adamant/commits"));
                }
            }
        }
        problems.truncate(PROBLEMS);
        Ok(problems)
    }
}
