// Sends the file that is named, as it is. Arguments: host, port, "tls" or "starttls", file of
// the CA, user, password, from, to, file of the message.
'use strict';
const fs = require('fs');
const nodemailer = require('nodemailer');

const [host, port, how, ca, user, pass, from, to, file] = process.argv.slice(2);
nodemailer.createTransport({
  host,
  port: Number(port),
  secure: how === 'tls',
  requireTLS: how === 'starttls',
  tls: { ca: fs.readFileSync(ca) },
  auth: { user, pass },
}).sendMail({ envelope: { from, to }, raw: fs.readFileSync(file) }).then(
  (info) => console.log(info.response),
  (err) => { console.error(err.message); process.exit(1); },
);
