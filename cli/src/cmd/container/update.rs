//! `update`: other limits and another restart policy for containers that exist.

use clap::Args;
use rswarm_api::types::{ContainerUpdateBody, ContainerUpdated, HostResources, RestartPolicy};

use super::options::restart_policy;
use crate::client::Call;
use crate::cmd::{CommandError, Context};
use crate::units;

/// `update`
#[derive(Debug, Args)]
pub struct UpdateArgs {
    /// Weight of its disk access, 10 to 1000
    #[arg(long, value_name = "WEIGHT")]
    blkio_weight: Option<u16>,
    /// Period of the CPU quota in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_period: Option<i64>,
    /// CPU time per period in microseconds
    #[arg(long, value_name = "MICROSECONDS", allow_hyphen_values = true)]
    cpu_quota: Option<i64>,
    /// Period of the real-time scheduler in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_rt_period: Option<i64>,
    /// Real-time CPU time per period in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_rt_runtime: Option<i64>,
    /// Weight of its CPU time
    #[arg(short, long, value_name = "WEIGHT")]
    cpu_shares: Option<i64>,
    /// Limit CPU time, as in `1.5`
    #[arg(long, value_name = "COUNT", value_parser = units::parse_nano_cpus)]
    cpus: Option<i64>,
    /// CPUs it may run on, as in `0-2,4`
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Memory nodes it may use
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// Limit memory, as in `512m`
    #[arg(short, long, value_name = "BYTES", value_parser = units::parse_bytes)]
    memory: Option<i64>,
    /// Memory that is kept free for it
    #[arg(long, value_name = "BYTES", value_parser = units::parse_bytes)]
    memory_reservation: Option<i64>,
    /// Limit memory and swap together; -1 is no limit
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true, value_parser = units::parse_bytes_or_unlimited)]
    memory_swap: Option<i64>,
    /// Limit processes; -1 is no limit
    #[arg(long, value_name = "COUNT", allow_hyphen_values = true)]
    pids_limit: Option<i64>,
    /// Restart when it ends: no, on-failure[:MAX], always, unless-stopped
    #[arg(long, value_name = "POLICY", value_parser = restart_policy)]
    restart: Option<RestartPolicy>,
    /// Names or IDs
    #[arg(required = true, value_name = "CONTAINER")]
    names: Vec<String>,
}

impl UpdateArgs {
    /// Changes them one after the other and prints their names.
    pub async fn run(self, context: &Context) -> Result<u8, CommandError> {
        let body = self.body();
        if body == ContainerUpdateBody::default() {
            return Err(CommandError::Usage(
                "you must provide one or more flags when using this command".into(),
            ));
        }
        let body = &body;
        let work = |name: String| async move {
            let call = Call::post(format!("/containers/{name}/update")).body(body);
            let updated: ContainerUpdated = context.client.json(call).await?;
            for warning in updated.warnings.iter().flatten() {
                context.terminal.complain(warning);
            }
            Ok(vec![name])
        };
        context.each(&self.names, work).await
    }

    fn body(&self) -> ContainerUpdateBody {
        ContainerUpdateBody {
            resources: HostResources {
                blkio_weight: self.blkio_weight.unwrap_or_default(),
                cpu_period: self.cpu_period.unwrap_or_default(),
                cpu_quota: self.cpu_quota.unwrap_or_default(),
                cpu_realtime_period: self.cpu_rt_period.unwrap_or_default(),
                cpu_realtime_runtime: self.cpu_rt_runtime.unwrap_or_default(),
                cpu_shares: self.cpu_shares.unwrap_or_default(),
                nano_cpus: self.cpus.unwrap_or_default(),
                cpuset_cpus: self.cpuset_cpus.clone().unwrap_or_default(),
                cpuset_mems: self.cpuset_mems.clone().unwrap_or_default(),
                memory: self.memory.unwrap_or_default(),
                memory_reservation: self.memory_reservation.unwrap_or_default(),
                memory_swap: self.memory_swap.unwrap_or_default(),
                pids_limit: self.pids_limit,
                ..HostResources::default()
            },
            restart_policy: self.restart.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: UpdateArgs,
    }

    #[test]
    fn flags_become_limits() {
        let line = "update -m 64m --memory-swap -1 --cpus 0.5 --pids-limit -1 --restart always a b";
        let args =
            Command::try_parse_from(line.split(' ')).unwrap_or_else(|problem| panic!("{problem}")).args;
        let body = args.body();
        assert_eq!((body.resources.memory, body.resources.memory_swap), (64 << 20, -1));
        assert_eq!((body.resources.nano_cpus, body.resources.pids_limit), (500_000_000, Some(-1)));
        assert_eq!(body.restart_policy.expect("policy").name, "always");
        assert_eq!(args.names, ["a", "b"]);
    }
}
