// An authorization server on oidc-provider: client credentials, and token exchange (RFC 8693) by its grant API.
//
//     node authorization_server.mjs READY_FILE MODULES SECRET TTL_SECONDS [JWKS_FILE]
//
// Serves http://127.0.0.1:PORT on a free port and writes {"url": ...} to READY_FILE. The clients `basic` and `post`
// prove themselves by SECRET. Access tokens are JWTs (RFC 9068), signed with RS256, for the resource that was asked for
// (RFC 8707): https://wiki.example (the default), or any on a host below `localhost`. Their scopes are `read` and
// `write`. Subject tokens are checked against what JWKS_FILE holds when one comes.
//
// Beside it: GET /seen answers with the bodies of token requests less their secrets; POST /rotate makes a new key that
// signs from then on, beside the last one, and answers with its name.

import { createServer } from 'node:http';
import { readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

const [readyFile, modules, secret, ttl, jwksFile] = process.argv.slice(2);
const from = (path) => import(pathToFileURL(join(modules, path)));
const { default: Provider, errors } = await from('oidc-provider/lib/index.js');
const jose = await from('jose/dist/webapi/index.js');

const EXCHANGE = 'urn:ietf:params:oauth:grant-type:token-exchange';
const AUDIENCE = 'https://wiki.example';
const seen = [];
const server = createServer();
await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
const url = `http://127.0.0.1:${server.address().port}`;

const serves = (resource) => resource === AUDIENCE || new URL(resource).hostname.endsWith('.localhost');
const client = (client_id, token_endpoint_auth_method) => ({
  client_id, client_secret: secret, token_endpoint_auth_method,
  grant_types: ['client_credentials', EXCHANGE], redirect_uris: [], response_types: [],
});
const keys = (...token) => jose.createLocalJWKSet(JSON.parse(readFileSync(jwksFile, 'utf8')))(...token);
const parameters = ['subject_token', 'subject_token_type', 'requested_token_type', 'audience', 'resource', 'scope'];

// The keys that are published, the newest first; it is the one that signs.
let signing = [];
let made = 0;
let callback;
const rotate = async () => {
  const { privateKey } = await jose.generateKeyPair('RS256', { extractable: true });
  const kid = `key-${++made}`;
  signing = [{ ...await jose.exportJWK(privateKey), kid, alg: 'RS256', use: 'sig' }, ...signing.slice(0, 1)];
  callback = provide();
  return kid;
};

// A provider with the keys of now: its own are fixed once it is made.
function provide() {
  const provider = new Provider(url, {
    jwks: { keys: signing },
    clients: [client('basic', 'client_secret_basic'), client('post', 'client_secret_post')],
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: false },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => AUDIENCE,
        useGrantedResource: () => true,
        getResourceServerInfo: (ctx, resource) => {
          if (!serves(resource)) throw new errors.InvalidTarget();
          return { scope: 'read write', audience: resource, accessTokenFormat: 'jwt', accessTokenTTL: Number(ttl) };
        },
      },
    },
    scopes: ['read', 'write'],
    ttl: { ClientCredentials: Number(ttl) },
  });

  provider.registerGrantType(EXCHANGE, async (ctx) => {
    const { params, client } = ctx.oidc;
    let claims;
    try {
      ({ payload: claims } = await jose.jwtVerify(params.subject_token, keys));
    } catch {
      throw new errors.InvalidGrant('the subject token is not acceptable');
    }
    const token = new provider.ClientCredentials({ client, scope: params.scope, extra: { subject: claims.sub } });
    token.resourceServer = new provider.ResourceServer(AUDIENCE, {
      scope: 'read write', audience: AUDIENCE, accessTokenFormat: 'jwt', accessTokenTTL: Number(ttl),
    });
    ctx.oidc.entity('ClientCredentials', token);
    ctx.body = {
      access_token: await token.save(),
      issued_token_type: 'urn:ietf:params:oauth:token-type:access_token',
      token_type: 'Bearer',
      expires_in: token.expiration,
      subject: claims.sub,
    };
  }, parameters);

  provider.use(async (ctx, next) => {
    await next();
    if (ctx.path !== '/token') return;
    const { client_secret: _secret, subject_token, ...rest } = ctx.oidc?.body ?? {};
    let subject = {};
    try {
      if (subject_token) subject = jose.decodeJwt(subject_token);
    } catch {
      subject = { sub: 'unreadable' };
    }
    seen.push({ ...rest, sub: subject.sub, subject, status: ctx.status, basic: Boolean(ctx.get('authorization')) });
  });
  return provider.callback();
}

await rotate();
server.on('request', async (request, response) => {
  if (request.url === '/seen') return response.end(JSON.stringify(seen));
  if (request.url === '/rotate' && request.method === 'POST') return response.end(await rotate());
  return callback(request, response);
});
writeFileSync(`${readyFile}.new`, JSON.stringify({ url, pid: process.pid }));
renameSync(`${readyFile}.new`, readyFile);
