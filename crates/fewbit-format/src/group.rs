use crate::{Error, Result};

/// Which weights share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Group {
    /// The whole matrix.
    Tensor,
    /// One row (output channel).
    Row,
    /// So many consecutive columns of a row.
    Columns(usize),
    /// So many rows by so many columns; those at the edges may be smaller. For floats only.
    Block([usize; 2]),
}

impl Group {
    /// Columns of one group in a matrix with `cols` columns.
    pub fn width(self, cols: usize) -> usize {
        match self {
            Self::Tensor | Self::Row => cols,
            Self::Columns(g) | Self::Block([_, g]) => g,
        }
    }

    /// Groups that one row crosses.
    pub fn per_row(self, cols: usize) -> usize {
        cols.div_ceil(self.width(cols))
    }

    /// Groups of a matrix `[rows, cols]`.
    pub fn count(self, rows: usize, cols: usize) -> usize {
        match self {
            Self::Tensor => 1,
            Self::Row | Self::Columns(_) => rows * self.per_row(cols),
            Self::Block([height, _]) => rows.div_ceil(height) * self.per_row(cols),
        }
    }

    /// The number of the first group of row `r`.
    pub fn first_of_row(self, r: usize, cols: usize) -> usize {
        match self {
            Self::Tensor => 0,
            Self::Row | Self::Columns(_) => r * self.per_row(cols),
            Self::Block([height, _]) => r / height * self.per_row(cols),
        }
    }

    /// Checks that groups tile rows of `cols` columns.
    ///
    /// # Errors
    /// Names the sizes that fit.
    pub fn check(self, cols: usize) -> Result<()> {
        match self {
            Self::Columns(g) if g == 0 || !cols.is_multiple_of(g) => {
                let fit: Vec<String> =
                    (1..=cols.min(1024)).filter(|g| cols.is_multiple_of(*g)).map(|g| g.to_string()).collect();
                Err(Error::input(format!("group size {g} does not divide rows of {cols}"))
                    .hint(format!("sizes that fit: {}, or `row`", fit.join(", "))))
            }
            Self::Block(_) => Err(Error::input("only small floats share a scale in blocks of rows and columns")),
            _ => Ok(()),
        }
    }
}

impl std::fmt::Display for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tensor => f.write_str("tensor"),
            Self::Row => f.write_str("row"),
            Self::Columns(g) => write!(f, "{g}"),
            Self::Block([height, width]) => write!(f, "{height}x{width}"),
        }
    }
}

/// The parameters of some rows; one for all rows stays as it is.
pub(crate) fn pick<T: Copy>(all: &[T], rows: &[usize], per_row: usize, is_shared: bool) -> Vec<T> {
    if is_shared {
        return all.to_vec();
    }
    rows.iter().flat_map(|r| &all[r * per_row..(r + 1) * per_row]).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_that_does_not_divide_is_refused_with_what_fits() {
        let e = Group::Columns(64).check(172).unwrap_err().to_string();
        assert_eq!(e, "group size 64 does not divide rows of 172; sizes that fit: 1, 2, 4, 43, 86, 172, or `row`");
    }
}
