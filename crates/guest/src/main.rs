//! `casemate-guest`: boot, open the link, serve, end the machine.

use casemate_guest::agent::{Agent, Kernel};
use casemate_guest::args::{self, Link};
use casemate_guest::reaper::Reaper;
use casemate_guest::{boot, log, serve};
use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;

fn main() -> ExitCode {
    let first_process = std::process::id() == 1;
    let link = match args::parse(std::env::args_os().skip(1), first_process) {
        Ok(link) => link,
        Err(usage) => {
            log::warn(format_args!("{usage}"));
            return ExitCode::from(2);
        }
    };
    let kernel = if link == Link::Devices { Kernel::Own } else { Kernel::Shared };
    let result = prepare(kernel).and_then(|()| run(kernel, link));
    if let Err(error) = &result {
        log::warn(format_args!("{}", log::chain(&**error)));
    }
    if kernel == Kernel::Own {
        boot::end();
    }
    if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn prepare(kernel: Kernel) -> Result<(), Box<dyn Error>> {
    match kernel {
        Kernel::Own => Ok(boot::boot()?),
        Kernel::Shared => Ok(boot::join()?),
    }
}

fn run(kernel: Kernel, link: Link) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let children = Reaper::signal()?;
        let agent = Arc::new(Agent::new(kernel));
        let reaper = agent.reaper();
        tokio::spawn(async move { reaper.run(children).await });
        Ok(serve::run(agent, kernel, link).await?)
    })
}
