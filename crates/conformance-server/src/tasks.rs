//! The tools that run as tasks: the client is given a task at once, and asks how it does.

use std::time::Duration;

use rmcp::ErrorData;
use rmcp::model::{
    CallToolResponse, CallToolResult, ClientCapabilities, ContentBlock, CreateTaskResult, InputRequest, JsonObject,
};
use rmcp::task_manager::{TaskContext, TaskExit, TaskFuture, TaskManager, TaskOptions};
use serde_json::Value;

use crate::ask::form;

/// The most that `slow_compute` takes.
const SLOW: Duration = Duration::from_secs(120);
/// How often a client should ask.
const POLL_MS: u64 = 100;

/// Calls a tool that runs as a task; `None` for other tools.
pub(crate) async fn call(
    manager: &TaskManager,
    name: &str,
    arguments: &JsonObject,
    capabilities: &ClientCapabilities,
) -> Option<Result<CallToolResponse, ErrorData>> {
    let job: fn(TaskContext) -> TaskFuture = match name {
        "greet" => return Some(Ok(text(format!("Hello, {}!", word(arguments, "name"))).into())),
        "slow_compute" => return Some(Ok(slow(manager, arguments, capabilities).await)),
        "failing_job" => |_| Box::pin(async { Ok(CallToolResult::error(vec![ContentBlock::text("it failed")])) }),
        "protocol_error_job" => {
            |_| Box::pin(async { Err(TaskExit::Error(ErrorData::internal_error("it broke", None))) })
        }
        "confirm_delete" => |task| {
            Box::pin(async move {
                let answer = task.request_input("confirm", question("Delete it?")).await?;
                Ok(text(format!("Deleted: {answer}")))
            })
        },
        "multi_input" => |task| {
            Box::pin(async move {
                let (first, second) = (question("The first?"), question("The second?"));
                let asked = tokio::try_join!(task.request_input("first", first), task.request_input("second", second));
                let (first, second) = asked?;
                Ok(text(format!("{first} and {second}")))
            })
        },
        _ => return None,
    };
    if !capabilities.supports_tasks() {
        let needed = ClientCapabilities::builder().enable_tasks().build();
        return Some(Err(ErrorData::missing_required_client_capability(needed)));
    }
    Some(Ok(start(manager, job)))
}

/// Answers with a task that does this.
pub(crate) fn start(manager: &TaskManager, job: impl FnOnce(TaskContext) -> TaskFuture) -> CallToolResponse {
    CreateTaskResult::new(manager.spawn(TaskOptions::new().with_poll_interval_ms(POLL_MS), job)).into()
}

async fn slow(manager: &TaskManager, arguments: &JsonObject, capabilities: &ClientCapabilities) -> CallToolResponse {
    let seconds = arguments.get("seconds").and_then(Value::as_f64).unwrap_or_default();
    let time = Duration::try_from_secs_f64(seconds).unwrap_or_default().min(SLOW);
    let done = text(format!("{} after {time:?}", word(arguments, "label")));
    if time.is_zero() || !capabilities.supports_tasks() {
        tokio::time::sleep(time).await;
        return done.into();
    }
    start(manager, move |task| {
        Box::pin(async move {
            tokio::select! {
                () = tokio::time::sleep(time) => Ok(done),
                () = task.cancelled() => Err(TaskExit::Cancelled),
            }
        })
    })
}

pub(crate) fn text(text: impl Into<String>) -> CallToolResult {
    CallToolResult::success(vec![ContentBlock::text(text)])
}

/// An argument, or nothing.
pub(crate) fn word<'a>(arguments: &'a JsonObject, name: &str) -> &'a str {
    arguments.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn question(message: &str) -> InputRequest {
    serde_json::from_value(form(message, "confirm", "boolean")).expect("questions of ours are well-formed")
}
