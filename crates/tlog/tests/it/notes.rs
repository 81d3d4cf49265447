//! Notes: published ones, and every way to be refused.

use adamant_tlog::{Checkpoint, CheckpointError, Note, NoteError, NoteSignature, NoteSigner, VerifierKey, cosigned};
use proptest::prelude::*;
use ring::signature::{Ed25519KeyPair, KeyPair as _};

// golang.org/x/mod/sumdb/note, its examples.
const PETER: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
const ENOCH: &str = "EnochRoot+af0cfe78+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop";
const PETERS_NOTE: &str = "If you think cryptography is the answer to your problem,\n\
    then you don't know what your problem is.\n\n\
    — PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";
const BOTH: &str =
    "— EnochRoot rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF1aGrQ5ovTG01oOTGwnWLox33WWd1RvMc+QQ=\n";

// c2sp.org/tlog-checkpoint, its example.
const SOFA: &str = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n\
    — example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n";

fn seeded(seed: u8) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap()
}

fn public(pair: &Ed25519KeyPair) -> [u8; 32] {
    pair.public_key().as_ref().try_into().unwrap()
}

fn signer(name: &str) -> NoteSigner {
    let random = ring::rand::SystemRandom::new();
    NoteSigner::from_pkcs8(name, Ed25519KeyPair::generate_pkcs8(&random).unwrap().as_ref()).unwrap()
}

#[test]
fn published_notes_verify() {
    let (peter, enoch): (VerifierKey, VerifierKey) = (PETER.parse().unwrap(), ENOCH.parse().unwrap());
    assert_eq!((peter.to_string().as_str(), enoch.name()), (PETER, "EnochRoot"));
    let note = Note::parse(PETERS_NOTE).unwrap();
    note.verify(&peter).unwrap();
    assert_eq!(note.verify(&enoch), Err(NoteError::Unsigned("EnochRoot".into())));
    assert_eq!(note.to_string(), PETERS_NOTE);
    let both = format!("{PETERS_NOTE}{BOTH}");
    let note = Note::parse(&both).unwrap();
    note.verify(&peter).unwrap();
    note.verify(&enoch).unwrap();
    assert_eq!(note.to_string(), both);
}

#[test]
fn a_changed_note_is_refused() {
    let peter: VerifierKey = PETER.parse().unwrap();
    let changed = PETERS_NOTE.replace("answer", "solution");
    assert_eq!(Note::parse(&changed).unwrap().verify(&peter), Err(NoteError::Signature("PeterNeumann".into())));
    // A wrong line of the same key beside a right one.
    let line = PETERS_NOTE.rsplit_once("\n\n").unwrap().1;
    let wrong = line.replace("JnAM=", "JnAI=");
    assert_ne!(line, wrong);
    for lines in [format!("{line}{wrong}"), format!("{wrong}{line}")] {
        let note = PETERS_NOTE.replace(line, &lines);
        assert_eq!(Note::parse(&note).unwrap().verify(&peter), Err(NoteError::Signature("PeterNeumann".into())));
    }
}

#[test]
fn malformed_notes_are_refused() {
    for bad in [
        "",
        "\n",
        "a\n",
        "a\n\n",
        "a\n\n— x\n",
        "a\n\n— x AAAAAAA=",
        "a\n\n— x AAAAAAA=\n\n",
        "a\n\n- x AAAAAAA=\n",
        "a\n\n— x AAAA\n",
        "a\n\n— x AAAAAA==\n",
        "a\n\n— x+y AAAAAAA=\n",
        "a\n\n—  AAAAAAA=\n",
        "a\n\n— x  AAAAAAA=\n",
        "a\n\n— x AAAAAAA= \n",
        "a\r\n\n— x AAAAAAA=\n",
        "a\u{0}\n\n— x AAAAAAA=\n",
        "a\n\n— x AAAAAAA=\nmore\n",
    ] {
        assert!(Note::parse(bad).is_err(), "{bad:?}");
    }
    let line = "— x AAAAAAA=\n";
    assert!(Note::parse(&format!("a\n\n{line}")).is_ok());
    assert!(Note::parse(&format!("a\n\n{}", line.repeat(64))).is_ok());
    assert!(Note::parse(&format!("a\n\n{}", line.repeat(65))).is_err());
    assert!(Note::parse(&format!("{}\n\n{line}", "a".repeat(64 << 10))).is_err());
}

#[test]
fn malformed_keys_are_refused() {
    for bad in [
        "",
        "x",
        "x+y",
        "PeterNeumann+c74f20a4+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "Peter Neumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "PeterNeumann+C74F20A3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "PeterNeumann+c74f20a3+AhpC2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "PeterNeumann+c74f20a3+ARpc",
        "PeterNeumann+c74f20a3+",
    ] {
        assert!(bad.parse::<VerifierKey>().is_err(), "{bad}");
    }
    assert!(VerifierKey::ed25519("a b", [0; 32]).is_err());
    assert!(VerifierKey::ed25519("a+b", [0; 32]).is_err());
    assert!(VerifierKey::ed25519("", [0; 32]).is_err());
}

#[test]
fn checkpoints() {
    let note = Note::parse(SOFA).unwrap();
    let sofa = Checkpoint::parse(note.text()).unwrap();
    assert_eq!((sofa.origin.as_str(), sofa.size, sofa.root[0]), ("example.com/behind-the-sofa", 20_852_163, 0x0a));
    assert_eq!(sofa.to_string(), note.text());
    assert_eq!(note.to_string(), SOFA);

    let log = signer("log.example");
    let mut checkpoint =
        Checkpoint { origin: "log.example".into(), size: 7, root: [3; 32], extensions: vec!["more 1".into()] };
    let signed = checkpoint.sign(&log).unwrap().to_string();
    let (read, _) = Checkpoint::verify(&signed, "log.example", log.key()).unwrap();
    assert_eq!(read, checkpoint);
    assert!(matches!(Checkpoint::verify(&signed, "other", log.key()), Err(CheckpointError::Origin { .. })));
    let other = signer("log.example");
    assert!(matches!(
        Checkpoint::verify(&signed, "log.example", other.key()),
        Err(CheckpointError::Note(NoteError::Unsigned(_)))
    ));
    for (from, to) in [("\n7\n", "\n8\n"), ("more 1", "more 2")] {
        let changed = signed.replace(from, to);
        assert!(matches!(
            Checkpoint::verify(&changed, "log.example", log.key()),
            Err(CheckpointError::Note(NoteError::Signature(_)))
        ));
    }
    checkpoint.extensions = vec![String::new()];
    assert!(checkpoint.sign(&log).is_err());
    checkpoint.extensions = vec!["a\nb".into()];
    assert!(checkpoint.sign(&log).is_err());
    let root = "AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=";
    assert!(Checkpoint::parse(&format!("o\n7\n{root}\n")).is_ok());
    for bad in [
        String::new(),
        "o\n7\n".into(),
        format!("\n7\n{root}\n"),
        format!("o\n07\n{root}\n"),
        format!("o\n+7\n{root}\n"),
        format!("o\n-7\n{root}\n"),
        format!("o\n7\n{root}"),
        format!("o\n7\n{root}\n\n"),
        format!("o\n7\n{}\n", &root[4..]),
        format!("o\n18446744073709551616\n{root}\n"),
    ] {
        assert!(Checkpoint::parse(&bad).is_err(), "{bad:?}");
    }
}

#[test]
fn cosignatures_are_kept_and_checked() {
    let log = signer("log.example");
    let checkpoint = Checkpoint { origin: "log.example".into(), size: 7, root: [3; 32], extensions: vec![] };
    let mut note = checkpoint.sign(&log).unwrap();
    let pair = seeded(9);
    let witness = VerifierKey::witness("witness.example", public(&pair)).unwrap();
    assert!(witness.is_witness());
    assert_eq!(witness.to_string().parse::<VerifierKey>(), Ok(witness.clone()));
    let time = 1_700_000_000u64;
    let signature = [&time.to_be_bytes()[..], pair.sign(&cosigned(time, note.text())).as_ref()].concat();
    let line = NoteSignature { name: witness.name().into(), key_id: witness.key_id(), signature };
    assert_eq!(note.verify(&witness), Err(NoteError::Unsigned("witness.example".into())));
    note.push(line.clone()).unwrap();
    let text = note.to_string();
    let note = Note::parse(&text).unwrap();
    assert_eq!(note.to_string(), text);
    note.verify(&witness).unwrap();
    note.verify(log.key()).unwrap();

    // Another time, or the same key as a plain signer, does not count.
    let mut moved = checkpoint.sign(&log).unwrap();
    let mut later = line;
    later.signature[7] ^= 1;
    moved.push(later).unwrap();
    assert_eq!(moved.verify(&witness), Err(NoteError::Signature("witness.example".into())));
    let plain = VerifierKey::ed25519("witness.example", public(&pair)).unwrap();
    assert_eq!(note.verify(&plain), Err(NoteError::Unsigned("witness.example".into())));
}

#[test]
fn signs_through_a_closure() {
    let pair = seeded(1);
    let key = VerifierKey::ed25519("log.example", public(&pair)).unwrap();
    let mut note = Note::new("text\n".into()).unwrap();
    note.sign_with(&key, |text| Ok::<_, ()>(pair.sign(text).as_ref().to_vec())).unwrap().unwrap();
    note.verify(&key).unwrap();
    assert!(!format!("{:?}", signer("a")).contains("seed"));
    assert!(NoteSigner::from_pkcs8("a", b"x").is_err());
}

proptest! {
    #[test]
    fn parsers_never_panic_and_keep_what_they_accept(text in "[\\PC\\n—+ ]{0,200}") {
        if let Ok(note) = Note::parse(&text) {
            prop_assert_eq!(note.to_string(), text.clone());
        }
        if let Ok(checkpoint) = Checkpoint::parse(&text) {
            prop_assert_eq!(checkpoint.to_string(), text.clone());
        }
        let _ = text.parse::<VerifierKey>();
    }
}
