//! Checkpoints, <https://c2sp.org/tlog-checkpoint>: what a log says of itself.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::hash::Hash;
use crate::note::{Note, NoteError, NoteSigner, VerifierKey};

/// The text of a checkpoint: origin, size, root, extension lines. `Display` gives the exact text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Which log.
    pub origin: String,
    /// Number of leaves.
    pub size: u64,
    /// Root of the tree of that size.
    pub root: Hash,
    /// Further lines, without newlines, none empty.
    pub extensions: Vec<String>,
}

/// Why a checkpoint is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// The note or its signature.
    #[error(transparent)]
    Note(#[from] NoteError),
    /// The text of the note.
    #[error("not a checkpoint: {0}")]
    Shape(&'static str),
    /// Another log.
    #[error("the checkpoint is of the log `{found}`, expected `{expected}`")]
    Origin {
        /// The log asked for.
        expected: String,
        /// The log named.
        found: String,
    },
}

impl Checkpoint {
    /// Reads the text of a note.
    pub fn parse(text: &str) -> Result<Self, CheckpointError> {
        use CheckpointError::Shape;
        let body = text.strip_suffix('\n').ok_or(Shape("no newline at the end"))?;
        let mut lines = body.split('\n');
        let origin = lines.next().filter(|line| !line.is_empty()).ok_or(Shape("no origin"))?;
        let size = lines.next().ok_or(Shape("no size"))?;
        let root = lines.next().ok_or(Shape("no root"))?;
        let number: u64 = size.parse().map_err(|_| Shape("the size is not a number"))?;
        // One spelling: no sign, no leading zero.
        if number.to_string() != size {
            return Err(Shape("the size is not a number"));
        }
        let root = STANDARD.decode(root).ok().and_then(|root| Hash::try_from(root).ok());
        let root = root.ok_or(Shape("the root is not the base64 of 32 bytes"))?;
        let extensions: Vec<String> = lines.map(str::to_owned).collect();
        if extensions.iter().any(String::is_empty) {
            return Err(Shape("an extension line is empty"));
        }
        Ok(Self { origin: origin.to_owned(), size: number, root, extensions })
    }

    /// Reads a note, checks that it is of the log `origin` and signed by `key`.
    pub fn verify(note: &str, origin: &str, key: &VerifierKey) -> Result<(Self, Note), CheckpointError> {
        let note = Note::parse(note)?;
        note.verify(key)?;
        let checkpoint = Self::parse(note.text())?;
        if checkpoint.origin != origin {
            let found = checkpoint.origin.chars().take(200).collect();
            return Err(CheckpointError::Origin { expected: origin.to_owned(), found });
        }
        Ok((checkpoint, note))
    }

    /// The note over this, signed by `signer`.
    pub fn sign(&self, signer: &NoteSigner) -> Result<Note, CheckpointError> {
        let mut note = self.note()?;
        note.sign(signer)?;
        Ok(note)
    }

    /// The note over this without signatures.
    pub fn note(&self) -> Result<Note, CheckpointError> {
        let text = self.to_string();
        // What is not read back as written is not written.
        if Self::parse(&text)? != *self {
            return Err(CheckpointError::Shape("a line holds a newline"));
        }
        Ok(Note::new(text)?)
    }
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n{}\n{}", self.origin, self.size, STANDARD.encode(self.root))?;
        self.extensions.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}
