use std::fmt;
use std::path::Path;

/// A result with the project's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Who can mend an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The user: a file, an argument, the disk, a permission. Exit code 2.
    Input,
    /// Nobody: the user asked to stop. Exit code 130.
    Interrupted,
    /// We: a broken promise of the program. Exit code 1.
    Internal,
}

/// What went wrong, where, and the way out: one sentence.
///
/// Displays as `PLACE: REASON; WAY OUT`, lower case, without a full stop, names in backticks.
/// Places are added from the inside out: the tensor where it is known, then the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    kind: Kind,
    places: Vec<String>,
    reason: String,
    way_out: Option<String>,
}

impl Error {
    /// An error that the user can mend.
    pub fn input(reason: impl Into<String>) -> Self {
        Self { kind: Kind::Input, places: Vec::new(), reason: reason.into(), way_out: None }
    }

    /// The user asked to stop; what is finished is kept.
    pub fn interrupted(reason: impl Into<String>) -> Self {
        Self { kind: Kind::Interrupted, ..Self::input(reason) }
    }

    /// A promise of the program was broken.
    pub fn internal(reason: impl Into<String>) -> Self {
        Self { kind: Kind::Internal, ..Self::input(reason) }
    }

    /// An operating-system error about `path`, with the way out that its kind suggests.
    pub fn io(doing: &str, path: &Path, error: &std::io::Error) -> Self {
        use std::io::ErrorKind as K;
        let way_out = match error.kind() {
            K::NotFound => Some("check the path"),
            K::PermissionDenied => Some("check the permissions, or choose another folder"),
            K::StorageFull | K::QuotaExceeded | K::FileTooLarge => Some("free space, or choose another disk"),
            K::ReadOnlyFilesystem => Some("choose a folder that can be written"),
            K::NotADirectory => Some("a file stands where a folder is needed"),
            _ => None,
        };
        let e = Self::input(format!("{doing} failed: {error}")).file(path);
        match way_out {
            Some(w) => e.hint(w),
            None => e,
        }
    }

    /// Adds the file as the outer place.
    pub fn file(self, path: &Path) -> Self {
        self.place(format!("`{}`", path.display()))
    }

    /// Adds the tensor as the outer place.
    pub fn tensor(self, name: &str) -> Self {
        self.place(format!("tensor `{name}`"))
    }

    /// Adds any outer place, such as `block 3`.
    pub fn place(mut self, place: impl Into<String>) -> Self {
        self.places.insert(0, place.into());
        self
    }

    /// Says the way out.
    pub fn hint(mut self, way_out: impl Into<String>) -> Self {
        self.way_out = Some(way_out.into());
        self
    }

    /// Says a way out where none is said yet: where an error passes by that knows the file, and not its reason.
    pub fn or_hint(mut self, way_out: &str) -> Self {
        self.way_out.get_or_insert_with(|| way_out.to_owned());
        self
    }

    /// Who can mend it.
    pub fn kind(&self) -> Kind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for place in &self.places {
            write!(f, "{place}: ")?;
        }
        f.write_str(&self.reason)?;
        match &self.way_out {
            Some(w) => write!(f, "; {w}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_sentence_from_the_outside_in() {
        let e = Error::input("has 3 rows, config says 4").hint("re-download it").tensor("a.b").file(Path::new("m.st"));
        assert_eq!(e.to_string(), "`m.st`: tensor `a.b`: has 3 rows, config says 4; re-download it");
        assert_eq!(e.clone().or_hint("give up"), e);
        assert_eq!(Error::input("is empty").or_hint("fill it").to_string(), "is empty; fill it");
    }
}
