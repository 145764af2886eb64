package settings

import "time"

// The structs below are what the programs read, one field a setting. The tag names the
// setting; its type, unit and default stand in the table (Table), nowhere else.
// Sizes are octets, uint64; 0 is as the setting's doc says.

// Common are settings of every program (clauses C19.4, C19.5).
type Common struct {
	BaseDir                string        `setting:"base_dir"`
	StateDir               string        `setting:"state_dir"`
	InstanceName           string        `setting:"instance_name"`
	Hostname               string        `setting:"hostname"`
	ShutdownClients        bool          `setting:"shutdown_clients"`
	VerboseProctitle       bool          `setting:"verbose_proctitle"`
	HAProxyTrustedNetworks string        `setting:"haproxy_trusted_networks"`
	HAProxyTimeout         time.Duration `setting:"haproxy_timeout"`
	MailDebug              bool          `setting:"mail_debug"`
}

// SSL are the TLS settings (clause C19.6). Cert, Key, CA hold file contents.
type SSL struct {
	SSL                 string `setting:"ssl"`
	Cert                string `setting:"ssl_cert"`
	Key                 string `setting:"ssl_key"`
	AltCert             string `setting:"ssl_alt_cert"`
	AltKey              string `setting:"ssl_alt_key"`
	KeyPassword         string `setting:"ssl_key_password"`
	CA                  string `setting:"ssl_ca"`
	DH                  string `setting:"ssl_dh"`
	VerifyClientCert    bool   `setting:"ssl_verify_client_cert"`
	RequireCRL          bool   `setting:"ssl_require_crl"`
	CertUsernameField   string `setting:"ssl_cert_username_field"`
	PreferServerCiphers bool   `setting:"ssl_prefer_server_ciphers"`
	CipherList          string `setting:"ssl_cipher_list"`
	CipherSuites        string `setting:"ssl_cipher_suites"`
	CurveList           string `setting:"ssl_curve_list"`
	MinProtocol         string `setting:"ssl_min_protocol"`
	Options             string `setting:"ssl_options"`
	CryptoDevice        string `setting:"ssl_crypto_device"`
	Verbose             bool   `setting:"verbose_ssl"`
	ClientCert          string `setting:"ssl_client_cert"`
	ClientKey           string `setting:"ssl_client_key"`
	ClientCAFile        string `setting:"ssl_client_ca_file"`
	ClientCADir         string `setting:"ssl_client_ca_dir"`
	ClientRequireValid  bool   `setting:"ssl_client_require_valid_cert"`
}

// Login is what submission-login reads (clauses C19.7, C19.9, S11).
type Login struct {
	Common
	SSL
	Greeting              string        `setting:"login_greeting"`
	TrustedNetworks       string        `setting:"login_trusted_networks"`
	SourceIPs             string        `setting:"login_source_ips"`
	AccessSockets         string        `setting:"login_access_sockets"`
	LogFormat             string        `setting:"login_log_format"`
	LogFormatElements     string        `setting:"login_log_format_elements"`
	ProxyTimeout          time.Duration `setting:"login_proxy_timeout"`
	ProxyMaxReconnects    uint32        `setting:"login_proxy_max_reconnects"`
	ProxyMaxDisconnect    time.Duration `setting:"login_proxy_max_disconnect_delay"`
	ProxyRawlogDir        string        `setting:"login_proxy_rawlog_dir"`
	DisablePlaintextAuth  bool          `setting:"disable_plaintext_auth"`
	AuthSSLRequireCert    bool          `setting:"auth_ssl_require_client_cert"`
	AuthSSLUserFromCert   bool          `setting:"auth_ssl_username_from_cert"`
	AuthVerbose           bool          `setting:"auth_verbose"`
	AuthDebug             bool          `setting:"auth_debug"`
	MaxUserIPConnections  uint32        `setting:"mail_max_userip_connections"`
	SubmissionMaxMailSize uint64        `setting:"submission_max_mail_size"`
	ClientWorkarounds     string        `setting:"submission_client_workarounds"`
	// BackendCapabilities is nil when the setting is unset, which differs from empty.
	BackendCapabilities *string `setting:"submission_backend_capabilities"`
	ImapUrlauthHost     string  `setting:"imap_urlauth_host"`
}

// Submission is what the worker reads (clauses C19.9, C19.11, S11).
type Submission struct {
	Common
	SSL
	MaxMailSize          uint64        `setting:"submission_max_mail_size"`
	MaxRecipients        uint32        `setting:"submission_max_recipients"`
	ClientWorkarounds    string        `setting:"submission_client_workarounds"`
	LogoutFormat         string        `setting:"submission_logout_format"`
	BackendCapabilities  *string       `setting:"submission_backend_capabilities"`
	RelayHost            string        `setting:"submission_relay_host"`
	RelayPort            uint16        `setting:"submission_relay_port"`
	RelayTrusted         bool          `setting:"submission_relay_trusted"`
	RelayUser            string        `setting:"submission_relay_user"`
	RelayMasterUser      string        `setting:"submission_relay_master_user"`
	RelayPassword        string        `setting:"submission_relay_password"`
	RelaySSL             string        `setting:"submission_relay_ssl"`
	RelaySSLVerify       bool          `setting:"submission_relay_ssl_verify"`
	RelayRawlogDir       string        `setting:"submission_relay_rawlog_dir"`
	RelayMaxIdleTime     time.Duration `setting:"submission_relay_max_idle_time"`
	RelayConnectTimeout  time.Duration `setting:"submission_relay_connect_timeout"`
	RelayCommandTimeout  time.Duration `setting:"submission_relay_command_timeout"`
	RawlogDir            string        `setting:"rawlog_dir"`
	RecipientDelimiter   string        `setting:"recipient_delimiter"`
	ImapUrlauthHost      string        `setting:"imap_urlauth_host"`
	ImapUrlauthPort      uint16        `setting:"imap_urlauth_port"`
	MailLogPrefix        string        `setting:"mail_log_prefix"`
	MailHome             string        `setting:"mail_home"`
	MailUID              string        `setting:"mail_uid"`
	MailGID              string        `setting:"mail_gid"`
	MailChroot           string        `setting:"mail_chroot"`
	ValidChrootDirs      string        `setting:"valid_chroot_dirs"`
	MailAccessGroups     string        `setting:"mail_access_groups"`
	MailPrivilegedGroup  string        `setting:"mail_privileged_group"`
	FirstValidUID        uint32        `setting:"first_valid_uid"`
	LastValidUID         uint32        `setting:"last_valid_uid"`
	FirstValidGID        uint32        `setting:"first_valid_gid"`
	LastValidGID         uint32        `setting:"last_valid_gid"`
	MaxUserIPConnections uint32        `setting:"mail_max_userip_connections"`
	MailAttributeDict    string        `setting:"mail_attribute_dict"`
	AuthDebug            bool          `setting:"auth_debug"`
}
