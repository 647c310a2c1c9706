//! Tells the program which revision of its sources it was built from. Without git, or outside of a repository, it
//! is built all the same.

use std::process::Command;

fn main() {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    if let Some(revision) = git(&["rev-parse", "HEAD"]) {
        let is_changed =
            git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|text| !text.is_empty());
        let mark = if is_changed { "-changed" } else { "" };
        println!("cargo::rustc-env=LOADGEN_GIT_REVISION={revision}{mark}");
    }
}
