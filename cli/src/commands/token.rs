use clap::{Args, Subcommand};
use jiff::Timestamp;
use vm_agent_schemas::api::{List, NewToken, TokenRequest, TokenRotation};
use vm_agent_schemas::credential::{ApiToken, Role};
use vm_agent_schemas::units::Span;

use crate::Context;
use crate::client::Fetched;
use crate::exit::{CommandError, CommandResult, Exit};
use crate::render;
use crate::select::nearest;
use crate::ui::{Format, OutputArgs};

/// Make, list, rotate and revoke tokens for the API over TCP
#[derive(Debug, Args)]
pub(crate) struct TokenArgs {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a token and print it: the one time that it is shown
    Create {
        /// Who or what it is for
        name: String,
        /// What it may do: read (see), exec (run things in agents), lifecycle (change what is wanted), admin (everything).
        /// Each may do what those before it may
        #[arg(long, default_value = "admin", value_parser = role)]
        role: Role,
        /// How long it works [default: until it is revoked]
        #[arg(long = "for", alias = "lasting", value_name = "SPAN")]
        lasting: Option<Span>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// List the tokens
    #[command(visible_alias = "list")]
    Ls {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Make a token in the place of another and print it: the one time that it is shown
    ///
    /// It has the name and the role of the old one, and works for as long.
    Rotate {
        /// The old token's id, or its name
        #[arg(value_name = "TOKEN")]
        token: String,
        /// How long the old one works beside it [default: 24h]
        #[arg(long, value_name = "SPAN")]
        overlap: Option<Span>,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Make a token worthless
    Revoke {
        /// The token's id, or its name
        #[arg(value_name = "TOKEN")]
        token: String,
    },
}

pub(crate) async fn run(context: &mut Context, args: TokenArgs) -> CommandResult {
    let client = context.place.client().await?;
    match args.command {
        TokenCommand::Create { name, role, lasting, output } => {
            let before = client.get::<List<ApiToken>>("/tokens").await?.content.items;
            let answer = client.post::<NewToken>("/tokens", &TokenRequest { name, role, lasting }).await?;
            show(context, &answer, output.output)?;
            let name = &answer.content.token.name;
            if let Some(other) = before.iter().find(|token| token.name == *name) {
                let id = other.id;
                context
                    .ui
                    .warn(format_args!("there is another token for {name}: `vm-agent token revoke {id}` ends that"))?;
            }
        }
        TokenCommand::Rotate { token, overlap, output } => {
            let tokens = client.get::<List<ApiToken>>("/tokens").await?.content.items;
            let found = named(&tokens, &token)?;
            let path = format!("/tokens/{}/rotate", found.id);
            let answer = client.post::<NewToken>(&path, &TokenRotation { overlap }).await?;
            show(context, &answer, output.output)?;
            let overlap = overlap.unwrap_or(TokenRotation::OVERLAP);
            context.ui.status(format_args!("the old one, {}, works {overlap} more at most", found.id))?;
        }
        TokenCommand::Ls { output } => {
            let answer = client.get::<List<ApiToken>>("/tokens").await?;
            let tokens = &answer.content.items;
            if tokens.is_empty() && matches!(output.output, Format::Table | Format::Wide) {
                context.ui.hint("there are no tokens; `vm-agent token create NAME` makes one")?;
            } else {
                context.ui.document(output.output, &answer.raw, || render::token_table(tokens, Timestamp::now()))?;
            }
        }
        TokenCommand::Revoke { token } => {
            let tokens = client.get::<List<ApiToken>>("/tokens").await?.content.items;
            let found = named(&tokens, &token)?;
            client.delete(&format!("/tokens/{}", found.id)).await?;
            context.ui.status(format_args!("token {} for {} is worthless now", found.id, found.name))?;
        }
    }
    Ok(Exit::SUCCESS)
}

fn show(context: &mut Context, answer: &Fetched<NewToken>, format: Format) -> Result<(), CommandError> {
    let NewToken { token, secret } = &answer.content;
    context.ui.document(format, &answer.raw, || secret.expose().to_owned())?;
    context.ui.status(format_args!("token {} for {}; it is not shown again", token.id, token.name))?;
    Ok(())
}

fn role(word: &str) -> Result<Role, String> {
    serde_json::from_value(word.into()).map_err(|_| "write read, exec, lifecycle or admin".to_owned())
}

/// The one token with that id or name.
fn named<'a>(tokens: &'a [ApiToken], wanted: &str) -> Result<&'a ApiToken, CommandError> {
    if let Some(token) = tokens.iter().find(|token| token.id.to_string() == wanted) {
        return Ok(token);
    }
    let same: Vec<&ApiToken> = tokens.iter().filter(|token| token.name == wanted).collect();
    match same.as_slice() {
        [token] => Ok(token),
        [] => {
            let near = nearest(wanted, tokens.iter().map(|token| token.name.as_str()));
            let hint = near.map(|near| format!("did you mean `{near}`?"));
            Err(CommandError::new(Exit::NOT_FOUND, format!("there is no token `{wanted}`"))
                .hint(hint.unwrap_or_else(|| "see which there are: vm-agent token ls".to_owned())))
        }
        several => {
            let ids: Vec<String> = several.iter().map(|token| token.id.to_string()).collect();
            Err(CommandError::new(Exit::CONFLICT, format!("{} tokens are for {wanted}", several.len()))
                .hint(format!("name one by its id: {}", ids.join(", "))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples;

    #[test]
    fn a_token_is_named_by_its_id_or_by_a_name_that_only_it_has() {
        let tokens = ["ci", "ana", "ana"].map(samples::token);
        let found = |wanted: &str| named(&tokens, wanted).map(|token| token.id).map_err(|error| error.exit);
        assert_eq!(found("ci"), Ok(tokens[0].id));
        assert_eq!(found("ana"), Err(Exit::CONFLICT));
        assert_eq!(found(&tokens[2].id.to_string()), Ok(tokens[2].id));
        assert_eq!(found("bob"), Err(Exit::NOT_FOUND));
        let hint = |wanted: &str| named(&tokens, wanted).unwrap_err().hints()[0].clone();
        assert_eq!(hint("cl"), "did you mean `ci`?");
        assert_eq!(hint("bob"), "see which there are: vm-agent token ls");
    }
}
