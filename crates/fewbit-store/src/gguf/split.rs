use std::path::{Path, PathBuf};

use fewbit_format::{Error, Result};

use super::Gguf;

/// The name of one part of a split model: `PREFIX-00002-of-00005.gguf`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SplitName {
    /// The folder and the prefix.
    pub(crate) prefix: PathBuf,
    /// The part's number, from 1.
    pub(crate) number: u32,
    /// How many parts there are.
    pub(crate) count: u32,
}

impl SplitName {
    /// Reads the name of a part; `None` for other names.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let stem = path.file_name()?.to_str()?.strip_suffix(".gguf")?;
        let (stem, count) = stem.rsplit_once("-of-")?;
        let (prefix, number) = stem.rsplit_once('-')?;
        let five_digits = |s: &str| (s.len() == 5).then(|| s.parse::<u32>().ok()).flatten();
        let (number, count) = (five_digits(number)?, five_digits(count)?);
        (1..=count).contains(&number).then(|| Self { prefix: path.with_file_name(prefix), number, count })
    }

    /// The path of part `number`.
    pub(crate) fn part(&self, number: u32) -> PathBuf {
        let mut name = self.prefix.clone().into_os_string();
        name.push(format!("-{number:05}-of-{:05}.gguf", self.count));
        name.into()
    }
}

/// Opens a model by any of its files; the first has the metadata.
pub(crate) fn open_all(path: &Path) -> Result<Vec<Gguf>> {
    let named = Gguf::open(path)?;
    let count = named.u64("split.count")?.unwrap_or(1);
    if count <= 1 {
        return Ok(vec![named]);
    }
    let name = SplitName::of(path).filter(|n| u64::from(n.count) == count).ok_or_else(|| {
        Error::input(format!("is one of {count} parts of a split model, but its name does not say which"))
            .hint(format!("name the parts `NAME-00001-of-{count:05}.gguf` and so on"))
            .file(path)
    })?;
    let mut parts = Vec::new();
    for number in 1..=name.count {
        let part = name.part(number);
        if !part.exists() {
            return Err(Error::input(format!("part {number} of {count} is missing"))
                .hint("download it into the same folder")
                .file(&part));
        }
        let part = Gguf::open(&part)?;
        check_part(&part, number, count)?;
        parts.push(part);
    }
    let described = parts[0].u64("split.tensors.count")?;
    let found: u64 = parts.iter().map(|p| p.tensors().len() as u64).sum();
    match described {
        Some(n) if n != found => {
            Err(Error::input(format!("says that the model has {n} tensors, but its {count} parts hold {found}"))
                .hint("the parts belong to different models: download them again")
                .file(parts[0].path()))
        }
        _ => Ok(parts),
    }
}

fn check_part(part: &Gguf, number: u32, count: u64) -> Result<()> {
    let (is_number, is_count) = (part.u64("split.no")?, part.u64("split.count")?);
    if (is_number, is_count) == (Some(u64::from(number) - 1), Some(count)) {
        return Ok(());
    }
    let say = |n: Option<u64>| n.map_or_else(|| "none".to_owned(), |n| n.to_string());
    Err(Error::input(format!(
        "is part {number} of {count} by its name, but `split.no` is {} and `split.count` is {} inside",
        say(is_number),
        say(is_count)
    ))
    .hint("the parts belong to different models: download them again")
    .file(part.path()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Elements, GgufWriter, TensorPlan, Value};

    fn write(path: &Path, number: u16, count: u16, total: i32, tensors: &[&str]) {
        let keys = [
            ("split.no".to_owned(), Value::U16(number)),
            ("split.count".to_owned(), Value::U16(count)),
            ("split.tensors.count".to_owned(), Value::I32(total)),
        ];
        let elements = Elements::Plain(fewbit_format::Dtype::I8);
        let plans = tensors.iter().map(|t| TensorPlan { name: (*t).into(), elements, shape: vec![3] });
        let mut writer = GgufWriter::create(path, &keys, &plans.collect::<Vec<_>>()).unwrap();
        for _ in tensors {
            writer.tensor(&[1, 2, 3]).unwrap();
        }
        writer.finish().unwrap();
    }

    #[test]
    fn any_part_opens_all_and_faults_name_the_part() {
        let dir = tempfile::tempdir().unwrap();
        let [one, two] = [1, 2].map(|n| dir.path().join(format!("m-0000{n}-of-00002.gguf")));
        write(&one, 0, 2, 3, &["a"]);
        let refusal = |path: &Path| open_all(path).unwrap_err().to_string();
        assert!(refusal(&one).contains("m-00002-of-00002.gguf`: part 2 of 2 is missing"), "{}", refusal(&one));
        write(&two, 1, 2, 3, &["b", "c"]);
        for path in [&one, &two] {
            let parts = open_all(path).unwrap();
            assert_eq!(parts.iter().map(Gguf::path).collect::<Vec<_>>(), [&one, &two]);
        }
        std::fs::remove_file(&two).unwrap();
        write(&two, 1, 2, 3, &["b"]);
        assert!(refusal(&one).contains("says that the model has 3 tensors, but its 2 parts hold 2"));
        std::fs::remove_file(&two).unwrap();
        write(&two, 4, 9, 3, &["b", "c"]);
        assert!(refusal(&one).contains("is part 2 of 2 by its name, but `split.no` is 4 and `split.count` is 9"));
        let lone = dir.path().join("lone.gguf");
        write(&lone, 1, 2, 3, &["b"]);
        assert!(refusal(&lone).contains("name the parts `NAME-00001-of-00002.gguf`"));
    }

    #[test]
    fn names_of_parts() {
        let name = SplitName::of(Path::new("/m/a-b-00002-of-00003.gguf")).unwrap();
        assert_eq!((name.number, name.count), (2, 3));
        assert_eq!(name.part(1), Path::new("/m/a-b-00001-of-00003.gguf"));
        for other in
            ["a.gguf", "a-00004-of-00003.gguf", "a-00000-of-00003.gguf", "a-1-of-3.gguf", "a-00001-of-00003.bin"]
        {
            assert_eq!(SplitName::of(Path::new(other)), None, "{other}");
        }
    }
}
