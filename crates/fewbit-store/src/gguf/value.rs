use bytes::Bytes;

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the names are the types")]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    U64(u64),
    I64(i64),
    F64(f64),
    String(String),
    Numbers(Numbers),
    Strings(Vec<String>),
}

pub(super) const STRING: u32 = 8;
pub(super) const ARRAY: u32 = 9;

/// The types of numbers (and booleans) in the metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are the types")]
pub enum NumberType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    U64,
    I64,
    F64,
}

impl NumberType {
    const ALL: [(u32, Self); 11] = [
        (0, Self::U8),
        (1, Self::I8),
        (2, Self::U16),
        (3, Self::I16),
        (4, Self::U32),
        (5, Self::I32),
        (6, Self::F32),
        (7, Self::Bool),
        (10, Self::U64),
        (11, Self::I64),
        (12, Self::F64),
    ];

    pub(super) fn from_code(code: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|(c, _)| *c == code).map(|(_, t)| t)
    }

    pub(super) fn code(self) -> u32 {
        Self::ALL.iter().find(|(_, t)| *t == self).expect("every type is in the table").0
    }

    /// Bytes of one number.
    pub fn size_bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    /// Reads one number from its little-endian bytes, of which there are [`Self::size_bytes`].
    pub(super) fn read(self, b: &[u8]) -> Option<Value> {
        Some(match self {
            Self::U8 => Value::U8(*b.first()?),
            Self::I8 => Value::I8(*b.first()? as i8),
            Self::Bool => Value::Bool(*b.first()? != 0),
            Self::U16 => Value::U16(u16::from_le_bytes(b.try_into().ok()?)),
            Self::I16 => Value::I16(i16::from_le_bytes(b.try_into().ok()?)),
            Self::U32 => Value::U32(u32::from_le_bytes(b.try_into().ok()?)),
            Self::I32 => Value::I32(i32::from_le_bytes(b.try_into().ok()?)),
            Self::F32 => Value::F32(f32::from_le_bytes(b.try_into().ok()?)),
            Self::U64 => Value::U64(u64::from_le_bytes(b.try_into().ok()?)),
            Self::I64 => Value::I64(i64::from_le_bytes(b.try_into().ok()?)),
            Self::F64 => Value::F64(f64::from_le_bytes(b.try_into().ok()?)),
        })
    }
}

/// A list of numbers, as they lie in the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Numbers {
    kind: NumberType,
    bytes: Bytes,
}

impl Numbers {
    /// Takes little-endian numbers; `bytes` holds a whole number of them.
    pub(super) fn new(kind: NumberType, bytes: Bytes) -> Self {
        debug_assert!(bytes.len().is_multiple_of(kind.size_bytes()));
        Self { kind, bytes }
    }

    /// A list of f32.
    pub fn from_f32s(values: &[f32]) -> Self {
        Self::new(NumberType::F32, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// A list of i32.
    pub fn from_i32s(values: &[i32]) -> Self {
        Self::new(NumberType::I32, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// The type of each.
    pub fn kind(&self) -> NumberType {
        self.kind
    }

    /// The numbers, little-endian.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.kind.size_bytes()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// One by one.
    pub fn iter(&self) -> impl Iterator<Item = Value> {
        self.bytes.chunks_exact(self.kind.size_bytes()).filter_map(|b| self.kind.read(b))
    }

    /// All as i64; `None` if one is no whole number or does not fit.
    pub fn to_i64s(&self) -> Option<Vec<i64>> {
        self.iter().map(|v| v.as_i64()).collect()
    }

    /// All as f32, rounded where needed (booleans as 0 and 1).
    pub fn to_f32s(&self) -> Vec<f32> {
        self.iter()
            .map(|v| v.as_f64().unwrap_or_else(|| f64::from(u8::from(v.as_bool() == Some(true)))) as f32)
            .collect()
    }
}

impl Value {
    /// The text.
    pub fn as_str(&self) -> Option<&str> {
        if let Self::String(s) = self { Some(s) } else { None }
    }

    /// The texts of a list.
    pub fn as_strings(&self) -> Option<&[String]> {
        if let Self::Strings(s) = self { Some(s) } else { None }
    }

    /// The numbers of a list.
    pub fn as_numbers(&self) -> Option<&Numbers> {
        if let Self::Numbers(n) = self { Some(n) } else { None }
    }

    /// The boolean.
    pub fn as_bool(&self) -> Option<bool> {
        if let Self::Bool(b) = self { Some(*b) } else { None }
    }

    /// The whole number, whatever its type.
    pub fn as_i64(&self) -> Option<i64> {
        match *self {
            Self::U8(v) => Some(v.into()),
            Self::I8(v) => Some(v.into()),
            Self::U16(v) => Some(v.into()),
            Self::I16(v) => Some(v.into()),
            Self::U32(v) => Some(v.into()),
            Self::I32(v) => Some(v.into()),
            Self::U64(v) => i64::try_from(v).ok(),
            Self::I64(v) => Some(v),
            _ => None,
        }
    }

    /// The whole number, whatever its type, if it is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U64(v) => Some(v),
            _ => self.as_i64().and_then(|v| u64::try_from(v).ok()),
        }
    }

    /// The number, whatever its type.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::F32(v) => Some(v.into()),
            Self::F64(v) => Some(v),
            Self::U64(v) => Some(v as f64),
            _ => self.as_i64().map(|v| v as f64),
        }
    }

    /// What it is, for errors.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::String(_) => "a text".into(),
            Self::Strings(s) => format!("a list of {} texts", s.len()),
            Self::Numbers(n) => format!("a list of {} numbers ({:?})", n.len(), n.kind()),
            Self::Bool(b) => format!("the boolean {b}"),
            other => match (other.as_i64(), other.as_f64()) {
                (Some(v), _) => format!("the number {v}"),
                (None, Some(v)) => format!("the number {v}"),
                (None, None) => "no number".into(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_widen_and_never_wrap() {
        assert_eq!(Value::U64(u64::MAX).as_i64(), None);
        assert_eq!(Value::U64(u64::MAX).as_u64(), Some(u64::MAX));
        assert_eq!(Value::I32(-1).as_u64(), None);
        assert_eq!(Value::F32(1.0).as_u64(), None);
        assert_eq!(Numbers::from_i32s(&[-1, 7]).to_i64s(), Some(vec![-1, 7]));
        assert_eq!(Numbers::from_i32s(&[-1, 7]).to_f32s(), [-1.0, 7.0]);
        assert_eq!(Numbers::from_f32s(&[0.5]).to_i64s(), None);
    }
}
