//! The ledger suite.

use std::collections::HashSet;
use std::sync::Arc;

use adamant_attest::predicate::{Binding, BindingKind, Divergence, Input, Lock, Observation, Predicate, Role, State};
use adamant_attest::{Envelope, Statement, parse_time};
use adamant_digest::Digest;
use adamant_store::{AppendError, Chain, Conflict, Fact, Head, Ledger, Receipt, Subject};
use adamant_tlog::{Checkpoint, Hash, Note, leaf_hash, verify_consistency, verify_inclusion};
use serde_json::Value;

/// Runs everything. `open` opens the same storage again each time, while the one before may
/// still be open; `prefix` sets this run's names apart from what the storage holds already.
pub async fn suite<L: Ledger + 'static>(open: impl AsyncFn() -> L, prefix: &str) {
    let ledger = Arc::new(open().await);
    let before = ledger.head().await.expect("head");
    binds_once(&*ledger, prefix).await;
    all_or_nothing(&*ledger, prefix).await;
    locks_bind_their_inputs(&*ledger, prefix).await;
    chains_have_no_gaps(&*ledger, prefix).await;
    refuses_what_cannot_be_written(&*ledger, prefix).await;
    lists_names_in_order(&*ledger, prefix).await;
    finds_by_subject(&*ledger, prefix).await;
    one_of_many_wins(&ledger, prefix).await;
    many_append_at_once(&ledger, prefix).await;
    proves(&*ledger, &before).await;
    let head = ledger.head().await.expect("head");
    drop(ledger);
    let again = open().await;
    assert_eq!(again.head().await.expect("head"), head, "what was acknowledged is there after opening again");
    let receipts = again.append(vec![tag(&format!("{prefix}once:1"), "1")]).await.expect("append after opening again");
    assert!(!receipts[0].new, "a name bound before stays bound after opening again");
}

/// A fact that binds the tag `name` to the digest of `content`.
pub fn tag(name: &str, content: &str) -> Fact {
    let digest = Digest::of(content.as_bytes());
    let by = "ann".to_owned();
    let binding = Binding { kind: BindingKind::Tag, name: name.to_owned(), digest, by, detail: Value::Null };
    Fact {
        role: Role::Control,
        subject: vec![Subject { name: name.to_owned(), digest }],
        predicate: Predicate::Binding(binding),
        chain: None,
    }
}

/// A fact that binds nothing, in the chain `name`.
pub fn link(name: &str, expect: Option<u64>) -> Fact {
    let observation = Observation {
        project: "shop".to_owned(),
        environment: "dev".to_owned(),
        deployment: 1,
        rollout: Digest::of(b"rollout"),
        state: State::Healthy,
        detail: String::new(),
    };
    Fact {
        role: Role::Host,
        subject: Vec::new(),
        predicate: Predicate::Observation(observation),
        chain: Some(Chain { name: name.to_owned(), expect }),
    }
}

async fn append(ledger: &dyn Ledger, facts: Vec<Fact>) -> Vec<Receipt> {
    let count = facts.len();
    let receipts = ledger.append(facts).await.expect("append");
    assert_eq!(receipts.len(), count, "a receipt for each fact");
    receipts
}

async fn conflict(ledger: &dyn Ledger, facts: Vec<Fact>) -> Conflict {
    match ledger.append(facts).await {
        Err(AppendError::Conflict(conflict)) => *conflict,
        other => panic!("binding a name to another digest must be a conflict, was {other:?}"),
    }
}

async fn size(ledger: &dyn Ledger) -> u64 {
    ledger.head().await.expect("head").size
}

async fn statement(ledger: &dyn Ledger, index: u64) -> Statement {
    let entry = ledger.entry(index).await.expect("entry").expect("an entry below the size is there");
    Statement::parse(&entry.statement).expect("a statement")
}

/// Divergences recorded about `name` from entry `from` on, by what was offered.
async fn divergences(ledger: &dyn Ledger, from: u64, name: &str) -> Vec<Divergence> {
    let entries = ledger.entries(from, usize::MAX).await.expect("entries");
    let predicates = entries.iter().map(|entry| Statement::parse(&entry.statement).expect("a statement").predicate());
    predicates
        .filter_map(|predicate| match predicate.expect("a predicate") {
            Predicate::Divergence(divergence) if divergence.name == name => Some(divergence),
            _ => None,
        })
        .collect()
}

async fn binds_once(ledger: &dyn Ledger, prefix: &str) {
    let name = format!("{prefix}once:1");
    let from = size(ledger).await;
    assert_eq!(ledger.binding(BindingKind::Tag, &name).await.expect("binding"), None);
    let first = append(ledger, vec![tag(&name, "1")]).await.remove(0);
    assert!(first.new, "the first binding is new");
    assert_eq!((first.index, size(ledger).await), (from, from + 1));

    let entry = ledger.entry(from).await.expect("entry").expect("the entry of a receipt is there");
    assert_eq!(Digest::of(&entry.statement), first.statement, "a receipt names the statement");
    assert_eq!(entry.recorded_at, first.recorded_at);
    assert!(parse_time(&entry.recorded_at).is_some(), "{} is a time", entry.recorded_at);
    assert_eq!(Envelope::parse(&entry.envelope).expect("an envelope").payload, entry.statement);
    let statement = Statement::parse(&entry.statement).expect("a statement");
    assert_eq!(statement.predicate().expect("a predicate"), tag(&name, "1").predicate);
    assert_eq!(statement.recorded_at().expect("a time"), entry.recorded_at);

    let bound = ledger.binding(BindingKind::Tag, &name).await.expect("binding").expect("a bound name is found");
    assert_eq!((bound.digest, bound.index, bound.by.as_str()), (Digest::of(b"1"), from, "ann"));
    assert_eq!(bound.at, first.recorded_at);
    assert_eq!(ledger.binding(BindingKind::Output, &name).await.expect("binding"), None, "kinds do not mix");

    let head = ledger.head().await.expect("head");
    let again = append(ledger, vec![tag(&name, "1")]).await.remove(0);
    assert_eq!(again, Receipt { new: false, ..first.clone() }, "the same binding again is the same receipt, not new");
    assert_eq!(ledger.head().await.expect("head"), head, "and writes nothing");

    for (offered, recorded) in [("2", 1), ("2", 1), ("3", 2), ("2", 2)] {
        let conflict = conflict(ledger, vec![tag(&name, offered)]).await;
        assert_eq!(conflict.bound, bound, "a conflict says what is bound");
        assert_eq!(conflict.offered, Digest::of(offered.as_bytes()));
        assert_eq!((conflict.kind, &conflict.name), (BindingKind::Tag, &name));
        let found = divergences(ledger, from, &name).await;
        assert_eq!(found.len(), recorded, "a divergence is recorded once for each digest offered");
        assert!(found.iter().all(|found| found.bound == bound.digest && found.by == "ann"));
    }
    assert_eq!(ledger.binding(BindingKind::Tag, &name).await.expect("binding"), Some(bound), "no refusal changes it");
}

async fn all_or_nothing(ledger: &dyn Ledger, prefix: &str) {
    let name = |n: u32| format!("{prefix}atomic:{n}");
    append(ledger, vec![tag(&name(1), "1"), tag(&name(2), "2")]).await;
    let from = size(ledger).await;
    let chain = format!("{prefix}atomic");
    conflict(ledger, vec![tag(&name(3), "3"), link(&chain, None), tag(&name(2), "other")]).await;
    assert_eq!(ledger.binding(BindingKind::Tag, &name(3)).await.expect("binding"), None, "a failed call binds nothing");
    assert_eq!(ledger.chain_head(&chain).await.expect("chain"), None, "a failed call moves no chain");
    assert_eq!(size(ledger).await, from + 1, "the divergence alone was recorded");
    assert_eq!(divergences(ledger, from, &name(2)).await.len(), 1);
    let receipts = append(ledger, vec![tag(&name(1), "1"), tag(&name(3), "3"), tag(&name(3), "3")]).await;
    assert_eq!(receipts.iter().map(|receipt| receipt.new).collect::<Vec<_>>(), [false, true, false]);
    assert!(append(ledger, Vec::new()).await.is_empty(), "no facts, no receipts");
    let from = size(ledger).await;
    let twice = ledger.append(vec![tag(&name(9), "1"), tag(&name(9), "2")]).await;
    assert!(matches!(twice, Err(AppendError::Invalid(_))), "a call that contradicts itself is invalid: {twice:?}");
    assert_eq!(size(ledger).await, from, "and leaves no trace");
}

async fn locks_bind_their_inputs(ledger: &dyn Ledger, prefix: &str) {
    let lock = |lock: &str, inputs: &[(&str, &str)]| {
        let inputs = inputs.iter().map(|(name, content)| Input {
            name: format!("{prefix}{name}"),
            digest: Digest::of(content.as_bytes()),
            size: 1,
        });
        let (lock, by) = (Digest::of(format!("{prefix}{lock}").as_bytes()), "ann".to_owned());
        let lock = Lock { project: "shop".to_owned(), lock, by, inputs: inputs.collect() };
        Fact { role: Role::Control, subject: Vec::new(), predicate: Predicate::Lock(lock), chain: None }
    };
    let first = append(ledger, vec![lock("a", &[("x", "1"), ("y", "1")])]).await.remove(0);
    let again = append(ledger, vec![lock("a", &[("x", "1"), ("y", "1")])]).await.remove(0);
    assert_eq!((first.new, again.new, first.index), (true, false, again.index));
    let second = append(ledger, vec![lock("b", &[("x", "1"), ("z", "1")])]).await.remove(0);
    assert!(second.new);
    let bound = async |name: &str| {
        let bound = ledger.binding(BindingKind::Upstream, &format!("{prefix}{name}")).await.expect("binding");
        bound.map(|bound| bound.index)
    };
    assert_eq!(bound("x").await, Some(first.index), "an input is bound at first sight");
    assert_eq!(bound("z").await, Some(second.index));
    let refused = conflict(ledger, vec![lock("c", &[("w", "1"), ("y", "2")])]).await;
    assert_eq!(refused.name, format!("{prefix}y"));
    assert_eq!(bound("w").await, None);
}

async fn chains_have_no_gaps(ledger: &dyn Ledger, prefix: &str) {
    let chain = format!("{prefix}chain");
    let receipts = append(ledger, vec![link(&chain, None), link(&chain, Some(2)), link(&chain, None)]).await;
    assert_eq!(receipts.iter().map(|receipt| receipt.sequence).collect::<Vec<_>>(), [Some(1), Some(2), Some(3)]);
    let from = size(ledger).await;
    for expected in [0, 1, 3, 5] {
        match ledger.append(vec![tag(&format!("{prefix}moved"), "1"), link(&chain, Some(expected))]).await {
            Err(AppendError::ChainMoved { chain: name, expected: asked, found }) => {
                assert_eq!((name, asked, found), (chain.clone(), expected, 4));
            }
            other => panic!("sequence {expected} of a chain at 4 must be refused, was {other:?}"),
        }
    }
    assert_eq!(size(ledger).await, from, "a refused link writes nothing");
    append(ledger, vec![link(&chain, Some(4))]).await;
    let links = ledger.chain(&chain, 1, usize::MAX).await.expect("chain");
    assert_eq!(links.iter().map(|link| link.sequence).collect::<Vec<_>>(), [1, 2, 3, 4]);
    let mut previous = None;
    for link in &links {
        let statement = statement(ledger, link.index).await;
        let said = statement.link().expect("a link").expect("a statement of a chain says so");
        assert_eq!((said.chain, said.sequence, said.previous), (chain.clone(), link.sequence, previous));
        previous = Some(link.statement);
    }
    assert_eq!(ledger.chain_head(&chain).await.expect("chain"), links.last().cloned());
    assert_eq!(ledger.chain(&chain, 2, 2).await.expect("chain"), links[1..3]);
    assert_eq!(ledger.chain(&chain, 5, 10).await.expect("chain"), []);
    for name in ["chains/b", "chains/a", "chains%c", "chainsz"] {
        append(ledger, vec![link(&format!("{prefix}{name}"), Some(1)), link(&format!("{prefix}{name}"), None)]).await;
    }
    let names = async |under: &str, limit: usize| {
        let names = ledger.chains(&format!("{prefix}{under}"), limit).await.expect("chains");
        names.into_iter().map(|name| name[prefix.len()..].to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names("chains/", 10).await, ["chains/a", "chains/b"]);
    assert_eq!(names("chains", 3).await, ["chains%c", "chains/a", "chains/b"]);
    assert_eq!(names("chains%", 10).await, ["chains%c"]);
    assert!(names("none", 10).await.is_empty());
}

async fn refuses_what_cannot_be_written(ledger: &dyn Ledger, prefix: &str) {
    let from = size(ledger).await;
    let mut by_log = tag(&format!("{prefix}bad"), "1");
    by_log.role = Role::Log;
    let mut float = tag(&format!("{prefix}bad"), "1");
    if let Predicate::Binding(binding) = &mut float.predicate {
        binding.detail = serde_json::json!({"half": 0.5});
    }
    let long = "x".repeat(100_000);
    for bad in [by_log, float, tag("", "1"), tag("a\nb", "1"), tag(&long, "1"), link("", None), link(&long, None)] {
        let outcome = ledger.append(vec![tag(&format!("{prefix}good"), "1"), bad]).await;
        assert!(matches!(outcome, Err(AppendError::Invalid(_))), "must be invalid, was {outcome:?}");
    }
    assert_eq!(size(ledger).await, from, "an invalid call writes nothing");
}

async fn lists_names_in_order(ledger: &dyn Ledger, prefix: &str) {
    let mut names = ["list/b:1", "list/a:2", "list/a:10", "list/ä:1", "list/a_b:1", "list/A:1", "list%:1", "list0:1"]
        .map(|name| format!("{prefix}{name}"));
    append(ledger, names.iter().map(|name| tag(name, "1")).collect()).await;
    names.sort_unstable();
    let list = async |under: &str, after: &str, limit: usize| {
        let under = format!("{prefix}{under}");
        let found = ledger.bindings(BindingKind::Tag, &under, after, limit).await.expect("bindings");
        found.into_iter().map(|(name, _)| name).collect::<Vec<_>>()
    };
    assert_eq!(list("list", "", 100).await, names, "names are in byte order");
    let below: Vec<String> = names.iter().filter(|name| name.contains("list/")).cloned().collect();
    assert_eq!(list("list/", "", 100).await, below);
    assert_eq!(list("list/", &below[1], 2).await, below[2..4], "after is exclusive, limit is kept");
    assert_eq!(list("list_", "", 100).await, [""; 0], "a prefix is no pattern");
    assert_eq!(list("list%", "", 100).await, [format!("{prefix}list%:1")]);
    let other = ledger.bindings(BindingKind::Release, prefix, "", 100).await.expect("bindings");
    assert!(other.is_empty(), "kinds do not mix");
}

async fn finds_by_subject(ledger: &dyn Ledger, prefix: &str) {
    let content = format!("{prefix}subject");
    let names = ["about:1", "about:2", "about:3"].map(|name| format!("{prefix}{name}"));
    let mut facts: Vec<Fact> = names.iter().map(|name| tag(name, &content)).collect();
    // The same subject twice is one subject.
    let twice = facts[0].subject[0].clone();
    facts[0].subject.push(twice);
    let indices: Vec<u64> = append(ledger, facts).await.iter().map(|receipt| receipt.index).collect();
    let digest = Digest::of(content.as_bytes());
    assert_eq!(ledger.about(digest, 100).await.expect("about"), indices);
    assert_eq!(ledger.about(digest, 2).await.expect("about"), indices[..2]);
    assert!(ledger.about(Digest::of(b"nothing is about this"), 2).await.expect("about").is_empty());
}

async fn one_of_many_wins<L: Ledger + 'static>(ledger: &Arc<L>, prefix: &str) {
    for round in 0..5 {
        let name = format!("{prefix}race:{round}");
        let from = size(&**ledger).await;
        let tasks = (0..8).map(|n| {
            let (ledger, fact) = (Arc::clone(ledger), tag(&name, &format!("{n}")));
            tokio::spawn(async move { ledger.append(vec![fact]).await })
        });
        let outcomes = futures_util::future::join_all(tasks).await;
        let outcomes: Vec<_> = outcomes.into_iter().map(|outcome| outcome.expect("a task ran")).collect();
        let won = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        let lost = outcomes.iter().filter(|o| matches!(o, Err(AppendError::Conflict(_)))).count();
        assert_eq!((won, lost), (1, 7), "exactly one of eight binds a name: {outcomes:?}");
        let bound = ledger.binding(BindingKind::Tag, &name).await.expect("binding").expect("bound");
        for outcome in &outcomes {
            match outcome {
                Ok(receipts) => assert_eq!(receipts[0].index, bound.index),
                Err(AppendError::Conflict(conflict)) => assert_eq!(conflict.bound, bound, "all hear the same"),
                Err(other) => panic!("{other:?}"),
            }
        }
        let offered: HashSet<Digest> =
            divergences(&**ledger, from, &name).await.into_iter().map(|divergence| divergence.offered).collect();
        assert_eq!(offered.len(), 7, "each refused digest is recorded");
        assert_eq!(size(&**ledger).await, from + 8, "once");
    }
}

async fn many_append_at_once<L: Ledger + 'static>(ledger: &Arc<L>, prefix: &str) {
    let from = size(&**ledger).await;
    let tasks = (0..8).map(|task| {
        let (ledger, prefix) = (Arc::clone(ledger), prefix.to_owned());
        tokio::spawn(async move {
            let mut indices = Vec::new();
            for n in 0..25 {
                let name = format!("{prefix}many/{task}:{n}");
                let facts = vec![tag(&name, &name), link(&format!("{prefix}many"), None)];
                for receipt in ledger.append(facts).await.expect("append") {
                    assert!(receipt.new);
                    indices.push(receipt.index);
                }
            }
            assert!(indices.is_sorted(), "a later call gets later entries");
            indices
        })
    });
    let mut indices = Vec::new();
    for done in futures_util::future::join_all(tasks).await {
        indices.extend(done.expect("a task ran"));
    }
    indices.sort_unstable();
    assert_eq!(indices, (from..from + 400).collect::<Vec<_>>(), "entries have no gaps and no repeats");
    let links = ledger.chain(&format!("{prefix}many"), 1, usize::MAX).await.expect("chain");
    assert_eq!(links.iter().map(|link| link.sequence).collect::<Vec<_>>(), (1..=200).collect::<Vec<_>>());
}

fn root(head: &Head) -> Hash {
    let note = Note::parse(&head.checkpoint).expect("a note");
    let checkpoint = Checkpoint::parse(note.text()).expect("a checkpoint");
    assert_eq!(checkpoint.size, head.size, "head and checkpoint agree");
    checkpoint.root
}

async fn proves(ledger: &dyn Ledger, before: &Head) {
    let head = ledger.head().await.expect("head");
    let entries = ledger.entries(0, usize::MAX).await.expect("entries");
    assert_eq!(entries.len() as u64, head.size, "the head counts the entries");
    assert_eq!(ledger.entries(head.size - 2, 100).await.expect("entries").len(), 2);
    assert!(ledger.entry(head.size).await.expect("entry").is_none());
    assert!(ledger.entry(u64::MAX).await.expect("entry").is_none());
    let mut times: Vec<&str> = entries.iter().map(|entry| entry.recorded_at.as_str()).collect();
    assert!(times.is_sorted(), "time does not run backwards");
    times.clear();
    let sizes: Vec<u64> = (1..=head.size).filter(|n| n % 97 == 0 || n.is_power_of_two() || *n == head.size).collect();
    for entry in &entries {
        let hash = leaf_hash(&entry.leaf);
        let proof = ledger.inclusion(entry.index, head.size).await.expect("inclusion");
        verify_inclusion(&hash, entry.index, head.size, &proof, &root(&head)).expect("an inclusion proof holds");
    }
    // An earlier tree's root, by the leaves themselves.
    let mut range = adamant_tlog::CompactRange::new();
    let mut roots = vec![range.root()];
    for entry in &entries {
        range.append(leaf_hash(&entry.leaf), |_, _| {});
        roots.push(range.root());
    }
    let at = |size: u64| &roots[usize::try_from(size).expect("small")];
    assert_eq!(*at(head.size), root(&head), "the checkpoint is over these leaves");
    assert_eq!(*at(before.size), root(before), "and the one before over the first of them");
    for old in &sizes {
        let proof = ledger.consistency(*old, head.size).await.expect("consistency");
        verify_consistency(*old, at(*old), head.size, at(head.size), &proof).expect("a consistency proof holds");
        let proof = ledger.inclusion(old / 2, *old).await.expect("inclusion in an earlier tree");
        let leaf = leaf_hash(&entries[usize::try_from(old / 2).expect("small")].leaf);
        verify_inclusion(&leaf, old / 2, *old, &proof, at(*old)).expect("a proof in an earlier tree holds");
    }
    assert!(ledger.inclusion(head.size, head.size).await.is_err(), "no proof of what is not there");
    assert!(ledger.inclusion(0, head.size + 1).await.is_err(), "no proof in a tree that is not there yet");
    assert!(ledger.consistency(1, head.size + 1).await.is_err());
    assert!(ledger.consistency(2, 1).await.is_err());
}
