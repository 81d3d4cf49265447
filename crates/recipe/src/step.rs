//! The key of a step: what its output is a function of. DESIGN §6.

use std::collections::BTreeMap;

use adamant_digest::Digest;
use serde_json::{Value, json};

/// One run of one program in the sandbox, complete: equal steps give equal outputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Build ABI: everything the server adds by itself.
    pub abi: u32,
    /// Debian architecture, `amd64`.
    pub arch: String,
    /// What the program sees of the machine.
    pub machine: Machine,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Environment, complete.
    pub env: BTreeMap<String, String>,
    /// The clock files and tools see, seconds since 1970.
    pub epoch: u64,
    /// Present only for a step that says `needs = ["commit"]`.
    pub commit: Option<Commit>,
    /// What is mounted or copied in, in the order it is laid down.
    pub inputs: Vec<StepInput>,
    /// Declared outputs: path in the image → path in the work tree.
    pub outputs: BTreeMap<String, String>,
}

/// Limits and names a program can see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Processors.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mb: u64,
    /// Host name.
    pub hostname: String,
    /// User id inside.
    pub uid: u32,
    /// Group id inside.
    pub gid: u32,
    /// Working directory.
    pub cwd: String,
}

/// The commit a step may see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// Lower-case hex id.
    pub id: String,
    /// Committer time, seconds since 1970.
    pub time: u64,
}

/// Something a step reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepInput {
    /// Where it appears.
    pub path: String,
    /// How: `root`, `copy` or `read`, as the build ABI defines them.
    pub mode: String,
    /// Digest of the tree, or of the bytes for a single file.
    pub digest: Digest,
}

impl Step {
    /// The text the key is the digest of: JSON in the canonical form of RFC 8785. Names in it
    /// are ASCII and numbers are integers, for which sorted members are all that form asks.
    pub fn canonical(&self) -> Vec<u8> {
        let inputs: Vec<Value> = self
            .inputs
            .iter()
            .map(|input| json!({ "digest": input.digest, "mode": input.mode, "path": input.path }))
            .collect();
        // A list, not an object: an image path may hold any character, and the order of object
        // members would then depend on how a writer compares them.
        let outputs: Vec<Value> = self.outputs.iter().map(|(to, from)| json!({ "from": from, "to": to })).collect();
        let mut value = json!({
            "abi": self.abi,
            "arch": self.arch,
            "argv": self.argv,
            "env": self.env,
            "epoch": self.epoch,
            "inputs": inputs,
            "machine": {
                "cpus": self.machine.cpus,
                "cwd": self.machine.cwd,
                "gid": self.machine.gid,
                "hostname": self.machine.hostname,
                "memoryMb": self.machine.memory_mb,
                "uid": self.machine.uid,
            },
            "outputs": outputs,
            "type": "adamant step v1",
        });
        if let (Some(commit), Value::Object(members)) = (&self.commit, &mut value) {
            members.insert("commit".to_owned(), json!({ "id": commit.id, "time": commit.time }));
        }
        let mut out = String::new();
        write_sorted(&value, &mut out);
        out.into_bytes()
    }

    /// The build key.
    pub fn key(&self) -> Digest {
        Digest::of(&self.canonical())
    }
}

/// Writes JSON with sorted members and no white space. Sorts by itself: whether serde_json's own
/// map is sorted depends on features that other crates may turn on.
fn write_sorted(value: &Value, out: &mut String) {
    match value {
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_sorted(item, out);
            }
            out.push(']');
        }
        Value::Object(members) => {
            let sorted: BTreeMap<&String, &Value> = members.iter().collect();
            out.push('{');
            for (i, (name, member)) in sorted.into_iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                out.push_str(&Value::String(name.clone()).to_string());
                out.push(':');
                write_sorted(member, out);
            }
            out.push('}');
        }
        leaf => out.push_str(&leaf.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step() -> Step {
        Step {
            abi: 1,
            arch: "amd64".into(),
            machine: Machine {
                cpus: 2,
                memory_mb: 2048,
                hostname: "build".into(),
                uid: 1000,
                gid: 1000,
                cwd: "/work".into(),
            },
            argv: vec!["/bin/sh".into(), "-euc".into(), "make \"all\"\n".into()],
            env: [("PATH".to_owned(), "/usr/bin:/bin".to_owned()), ("CC".to_owned(), "gcc".to_owned())].into(),
            epoch: crate::EPOCH,
            commit: None,
            inputs: vec![
                StepInput { path: "/".into(), mode: "root".into(), digest: Digest::of(b"root") },
                StepInput { path: "/work".into(), mode: "copy".into(), digest: Digest::of(b"src") },
            ],
            outputs: [("/app/web".to_owned(), "web".to_owned())].into(),
        }
    }

    /// The formula is a format: changing it orphans every cached output. These never change.
    #[test]
    fn golden() {
        let plain = step();
        let text = String::from_utf8(plain.canonical()).unwrap();
        assert_eq!(
            text,
            concat!(
                r#"{"abi":1,"arch":"amd64","argv":["/bin/sh","-euc","make \"all\"\n"],"#,
                r#""env":{"CC":"gcc","PATH":"/usr/bin:/bin"},"epoch":315532800,"#,
                r#""inputs":[{"digest":"sha256:4813494d137e1631bba301d5acab6e7bb7aa74ce1185d456565ef51d737677b2","mode":"root","path":"/"},"#,
                r#"{"digest":"sha256:25a6634263c1b1f6fc4697a04e2b9904ea4b042a89af59dc93ec1f5d44848a26","mode":"copy","path":"/work"}],"#,
                r#""machine":{"cpus":2,"cwd":"/work","gid":1000,"hostname":"build","memoryMb":2048,"uid":1000},"#,
                r#""outputs":[{"from":"web","to":"/app/web"}],"type":"adamant step v1"}"#,
            )
        );
        assert_eq!(plain.key(), Digest::of(text.as_bytes()));
        assert_eq!(plain.key().to_string(), "sha256:c937439c3e11b101c4c1a27fb9ce6e8e4f630d658a793fe58ca2153fe15eca86");
        let with_commit = Step { commit: Some(Commit { id: "9f3c".into(), time: 1_700_000_000 }), ..step() };
        assert_eq!(
            with_commit.key().to_string(),
            "sha256:616e10807c71344f334dc1a5446a12b2d337143009f6043c63d17a6a0107061e"
        );
    }

    /// The same bytes as the canonical form statements are written in.
    #[test]
    fn is_canonical_json() {
        let mut step = step();
        step.argv.push("\u{7}\u{8}\t\u{7f}é\u{1f600}/".into());
        step.outputs.insert("/é".into(), "\u{fb33}".into());
        let value: Value = serde_json::from_slice(&step.canonical()).unwrap();
        assert_eq!(adamant_attest::canonical(&value).unwrap(), step.canonical());
    }

    #[test]
    fn everything_in_it_is_in_the_key() {
        type Edit = fn(&mut Step);
        let changes: Vec<(&str, Edit)> = vec![
            ("abi", |s| s.abi = 2),
            ("arch", |s| s.arch = "arm64".into()),
            ("cpus", |s| s.machine.cpus = 3),
            ("memory", |s| s.machine.memory_mb = 1),
            ("hostname", |s| s.machine.hostname = "x".into()),
            ("uid", |s| s.machine.uid = 0),
            ("gid", |s| s.machine.gid = 0),
            ("cwd", |s| s.machine.cwd = "/".into()),
            ("argv", |s| s.argv.push(String::new())),
            ("env", |s| drop(s.env.insert("A".into(), String::new()))),
            ("epoch", |s| s.epoch += 1),
            ("commit", |s| s.commit = Some(Commit { id: "a".into(), time: 0 })),
            ("input path", |s| s.inputs[1].path = "/w".into()),
            ("input mode", |s| s.inputs[1].mode = "read".into()),
            ("input digest", |s| s.inputs[1].digest = Digest::of(b"other")),
            ("input order", |s| s.inputs.reverse()),
            ("outputs", |s| s.outputs.clear()),
        ];
        let mut keys = std::collections::BTreeSet::from([step().key()]);
        for (name, change) in changes {
            let mut changed = step();
            change(&mut changed);
            assert!(keys.insert(changed.key()), "{name} is not in the key");
        }
    }
}
