//! Where a result goes: what stands there already, and disks that do not take it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Ran;
use crate::bench::{Bench, files, same_bytes};

#[test]
fn what_stands_at_the_output_is_kept() {
    let bench = Bench::new("2");
    let args = ["--recipe", "rtn"];
    let force = ["--recipe", "rtn", "--bits", "8", "--force"];
    let out = bench.path("out");
    let whole = bench.whole("out", &args);
    bench.run(&out, &args).refused(&["out`", "exists already", "--force"]);
    bench.run(&out, &[&args[..], &["--resume"]].concat()).refused(&["out`", "is finished", "`--resume`"]);
    same_bytes(&files(&out), &whole, "refused");
    bench.holds_only(&["out"]);
    assert_eq!(bench.run(&out, &force).code, Some(0));
    assert_ne!(files(&out), whole);

    // Not everything that was named by mistake is replaced.
    let (folder, file) = (bench.path("photos"), bench.path("thesis.txt"));
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("cat.jpg"), "x").unwrap();
    fs::write(&file, "x").unwrap();
    for path in [&folder, &file] {
        bench.run(path, &args).refused(&["exists already"]);
        bench.run(path, &force).refused(&["is not a model", "remove it yourself"]);
    }
    assert!(folder.join("cat.jpg").exists() && file.exists());
    bench.run(&file.join("out"), &args).refused(&["thesis.txt", "a file stands where a folder is needed"]);
    // A trailing slash names the same folder.
    bench.run(Path::new(&format!("{}/", out.display())), &args).refused(&["exists already"]);
    // The source is not replaced by what is made of it.
    let model = PathBuf::from(&bench.model);
    let source = files(&model);
    bench.run(&model, &force).refused(&["the model itself"]);
    same_bytes(&files(&model), &source, "the source");
    bench.run(Path::new("/"), &args).refused(&["no name for a new folder"]);
    // An empty folder has nothing to lose.
    let empty = bench.path("empty");
    fs::create_dir(&empty).unwrap();
    assert_eq!(bench.run(&empty, &force).code, Some(0));
    bench.run(&bench.path("new"), &[&args[..], &["--resume"]].concat()).refused(&["nothing to resume"]);
    assert_eq!(bench.run(&bench.path("a/b/c"), &args).code, Some(0));
    bench.holds_only(&["out", "photos", "thesis.txt", "empty", "a"]);
}

/// Runs a script in a world of its own, where it may mount; `None` where that is not allowed.
fn alone(script: &str, arguments: &[&str]) -> Option<Ran> {
    let may = Command::new("unshare").args(["-rm", "mount", "-t", "tmpfs", "none", "/mnt"]).output();
    if !may.is_ok_and(|o| o.status.success()) {
        println!("skipped: nothing can be mounted here");
        return None;
    }
    let mut command = Command::new("unshare");
    command.args(["-rm", "bash", "-c", script, env!("CARGO_BIN_EXE_fewbit")]).args(arguments);
    Some(Ran::of(&mut command))
}

/// A disk of its own for the program: `body` is a script in which `run` quantizes to `$disk/out`.
fn on_a_disk(bench: &Bench, body: &str) -> Option<Ran> {
    const RUN: &str = r#"disk=$1 model=$2 text=$3
        run() {
            "$0" quantize "$model" --recipe gptq --group 32 --calibration "$text" --samples 3 --length 32 \
                --out "$disk/out" "$@"
        }
        "#;
    let disk = bench.path("disk");
    fs::create_dir_all(&disk).unwrap();
    let (disk, text) = (disk.display().to_string(), bench.path("text.txt").display().to_string());
    alone(&format!("{RUN}{body}"), &[&disk, &bench.model, &text])
}

#[test]
fn a_full_disk_is_seen_before_the_work_and_in_the_middle_of_it() {
    let bench = Bench::new("2");
    let whole = bench.whole("whole", &["--recipe", "gptq"]);
    let small = "mount -t tmpfs -o size=1m none $disk; run; code=$?; ls -A $disk; exit $code";
    let Some(ran) = on_a_disk(&bench, small) else { return };
    ran.refused(&["disk/out", "no space: ", "bytes are free", "are needed", "another disk"]);
    assert_eq!(ran.stdout, "", "something is left behind");

    // The space goes while the run is away: it says so, keeps what it has, and goes on when there is space again.
    let later = r"mount -t tmpfs -o size=8m none $disk
        FEWBIT_CRASH_AT=9 run 2>/dev/null
        head -c 100m /dev/zero >$disk/other 2>/dev/null
        run --resume && exit 9; code=$?; ls $disk/out 2>/dev/null && exit 8; [ $code = 2 ] || exit 7
        rm $disk/other; run --resume >/dev/null || exit 6
        ls -A $disk; cp -r $disk/out ${disk%disk}copied";
    let ran = on_a_disk(&bench, later).unwrap();
    assert_eq!((ran.code, ran.stdout.trim()), (Some(0), "out"), "{}", ran.stderr);
    assert!(ran.stderr.contains("error: ") && ran.stderr.contains("no space: "), "{}", ran.stderr);
    same_bytes(&files(&bench.path("copied")), &whole, "after the space came back");
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let bench = Bench::new("2");
    let Some(ran) = on_a_disk(&bench, "mount -t tmpfs -o ro none $disk; run") else { return };
    ran.refused(&["disk/out.partial", "Read-only file system", "choose a folder that can be written"]);
}

#[cfg(unix)]
#[test]
fn a_write_that_fails_keeps_what_is_finished() {
    let bench = Bench::new("2");
    let args = ["--recipe", "gptq"];
    let whole = bench.whole("whole", &args);
    let out = bench.path("out");
    // No file may be longer than this, as on a disk without room: only the last shard is.
    let limited = bench.command(&out, &args);
    let mut shell = Command::new("bash");
    shell.args(["-c", "trap '' XFSZ; ulimit -f 200; exec \"$0\" \"$@\""]);
    Ran::of(shell.arg(limited.get_program()).args(limited.get_args())).refused(&[
        "block-00002.safetensors",
        "writing failed",
        "File too large",
        "another disk",
    ]);
    assert!(!out.exists());
    let done = fs::read_to_string(bench.path("out.partial/journal.jsonl")).unwrap();
    assert_eq!(done.lines().count(), 3, "{done}");
    assert_eq!(bench.run(&out, &[&args[..], &["--resume"]].concat()).code, Some(0));
    same_bytes(&files(&out), &whole, "resumed");
    bench.holds_only(&["out", "whole"]);
}
