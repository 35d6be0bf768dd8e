//! Which role a request needs. One rule for all routes, so that a new one is never open by oversight: what
//! only looks needs [`Role::Read`], and whatever else is not named here needs [`Role::Lifecycle`].

use axum::http::Method;
use vm_agent_schemas::credential::Role;

/// The role that a request needs, by its method and path.
pub(super) fn required(method: &Method, path: &str) -> Role {
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    match (method.is_safe(), segments.as_slice()) {
        // Tokens and the audit tell of others; the end of the controller is everybody's.
        (_, ["tokens" | "audit", ..]) | (false, ["down"]) => Role::Admin,
        // Whose the host's machines are.
        (false, ["agents", _, "import" | "release"]) => Role::Admin,
        // A process in an agent, though it is a GET as every WebSocket.
        (_, ["agents", _, "exec"]) => Role::Exec,
        (false, ["agents", _, "task"] | ["tasks" | "messages", ..]) => Role::Exec,
        // It shows what would be done, and does nothing.
        (false, ["plan"]) => Role::Read,
        (true, _) => Role::Read,
        (false, _) => Role::Lifecycle,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_needs_the_least_role_that_it_can_do_with() {
        let get = ["/agents", "/agents/web", "/tasks/1/output", "/events", "/metrics", "/openapi.json", "/messages"];
        for path in get {
            assert_eq!(required(&Method::GET, path), Role::Read, "{path}");
        }
        let exec = ["/agents/web/task", "/tasks", "/tasks/1/cancel", "/tasks/1/replay", "/messages"];
        for path in exec {
            assert_eq!(required(&Method::POST, path), Role::Exec, "{path}");
        }
        assert_eq!(required(&Method::GET, "/agents/web/exec"), Role::Exec);
        assert_eq!(required(&Method::DELETE, "/tasks/1/dead"), Role::Exec);
        assert_eq!(required(&Method::POST, "/plan"), Role::Read);
        for path in ["/apply", "/agents/web/start", "/approvals/1", "/pause", "/some/new/route"] {
            assert_eq!(required(&Method::POST, path), Role::Lifecycle, "{path}");
        }
        assert_eq!(required(&Method::DELETE, "/agents/web"), Role::Lifecycle);
        for path in ["/down", "/tokens", "/tokens/1/rotate", "/agents/web/import", "/agents/web/release"] {
            assert_eq!(required(&Method::POST, path), Role::Admin, "{path}");
        }
        assert_eq!(required(&Method::GET, "/tokens"), Role::Admin);
        assert_eq!(required(&Method::GET, "/audit"), Role::Admin);
    }

    #[test]
    fn an_agent_that_is_called_like_a_route_is_an_agent() {
        assert_eq!(required(&Method::PUT, "/agents/tokens"), Role::Lifecycle);
        assert_eq!(required(&Method::GET, "/agents/exec"), Role::Read);
    }
}
