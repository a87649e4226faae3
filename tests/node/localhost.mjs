// Resolves names below `.localhost` to 127.0.0.1 (RFC 6761, section 6.3), which not every system does. Preload it:
//
//     node --import ./localhost.mjs ...

import dns from 'node:dns';

const lookup = dns.lookup;
dns.lookup = (name, ...rest) => lookup.call(dns, String(name).endsWith('.localhost') ? '127.0.0.1' : name, ...rest);
