# frozen_string_literal: true

class User < ActiveRecord::Base
  GHOST_ID = 99

  def self.find_by_username(name)
    where('LOWER(username) = LOWER(?)', name).first
  end
end

class Key < ActiveRecord::Base
  # A key may be for signing commits only; such a key cannot log in.
  scope :auth, -> { where(signing_only: false) }

  # The comment of the owner is replaced by name and host.
  def publishable_key
    algorithm, blob, = key.split
    "#{algorithm} #{blob} #{owner&.name} (localhost)"
  end

  def owner
    User.find_by(id: user_id)
  end

  def expired?
    expires_at.present? && expires_at.past?
  end
end

# Deploy keys are in the same table. They act for the user who created them, and for the ghost user when that one is
# deleted.
class DeployKey < Key
  def owner
    super || User.find(User::GHOST_ID)
  end
end

class Project < ActiveRecord::Base
  def gl_repository
    "project-#{id}"
  end

  def relative_path
    digest = Digest::SHA256.hexdigest(id.to_s)
    "@hashed/#{digest[0, 2]}/#{digest[2, 2]}/#{digest}.git"
  end

  def visible_to_anyone?
    visibility == 'public' && !code_private
  end

  def self.find_by_id_or_path(id)
    id.to_s.match?(/\A\d+\z/) ? find_by(id: id) : find_by(path: id)
  end

  # "project-7" as Gitaly names it, or "group/name" as users do.
  def self.from_params(params)
    repository = params[:gl_repository]
    repository ? find_by(id: repository.to_s[/\Aproject-(\d+)\z/, 1]) : find_by(path: params[:project])
  end
end

class Agent < ActiveRecord::Base
  belongs_to :project
end

# The tables and their data. It is fixed, so that two responses to one request are equal to the byte.
module Database
  CREATED_AT = Time.utc(2019, 6, 27, 15, 29, 2.219r)

  module_function

  def prepare
    ActiveRecord::Migration.suppress_messages { define_tables }
    add_users
    add_keys
    add_projects
    Agent.create!(id: 5, name: 'the-agent', token: 'agent-token-5', project_id: 2)
  end

  def define_tables
    ActiveRecord::Schema.define do
      create_table(:users, force: true) do |t|
        t.string :username, :name
        t.boolean :two_factor_enabled, default: false
        t.boolean :blocked, default: false
      end
      create_table(:keys, force: true) do |t|
        t.string :type, :title, :fingerprint, :fingerprint_sha256
        t.text :key
        t.integer :user_id
        t.boolean :signing_only, default: false
        t.datetime :created_at, precision: 6
        t.datetime :expires_at
      end
      create_table(:projects, force: true) do |t|
        t.string :path, :visibility, :outcome
        t.boolean :lfs_enabled, default: true
        t.boolean :code_private, default: false
      end
      create_table(:agents, force: true) do |t|
        t.string :name, :token
        t.integer :project_id
      end
    end
  end

  def add_users
    User.create!(id: 1, username: 'root', name: 'Administrator', two_factor_enabled: true)
    User.create!(id: 7, username: 'rubi', name: 'Dede Eichmann')
    User.create!(id: 11, username: 'barred', name: 'Barred', blocked: true)
    User.create!(id: User::GHOST_ID, username: 'ghost', name: 'Ghost User')
  end

  # The tests build the same key texts from the same rule: see `tests/acceptance/keys.rs`.
  def add_keys
    add_key(1, ed25519("\x01"), user_id: 1)
    add_key(2, ecdsa("\x02"), user_id: 7)            # its Base64 needs padding
    add_key(3, ed25519("\xef\xbe\xfb"), user_id: 7)  # its Base64 is full of "+"
    add_key(4, ed25519("\x04"), user_id: 1, signing_only: true)
    add_key(5, ed25519("\x05"), user_id: nil)
    add_key(6, ed25519("\x06"), user_id: 7, type: 'DeployKey')
    add_key(8, ed25519("\x08"), user_id: nil, type: 'DeployKey')
    add_key(11, ed25519("\x0b"), user_id: 11)
    add_key(9, ed25519("\x09"), user_id: 7, expires_at: Time.utc(2020, 1, 1))
  end

  def add_projects
    Project.create!(id: 1, path: 'gnuwget/wget2', visibility: 'public')
    Project.create!(id: 2, path: 'root/config', visibility: 'private')
    Project.create!(id: 3, path: 'root/internal', visibility: 'internal')
    Project.create!(id: 4, path: 'rubi/private', visibility: 'private')
    Project.create!(id: 6, path: 'rubi/code-private', visibility: 'public', code_private: true)
    Project.create!(id: 8, path: 'rubi/no-lfs', visibility: 'public', lfs_enabled: false)
    # The outcomes of `allowed` for these are in `ShellAPI`.
    %w[geo denied timeout unknown busy crash held].each do |outcome|
      Project.create!(path: "outcome/#{outcome}", visibility: 'public', outcome: outcome)
    end
  end

  def add_key(id, line, **attributes)
    blob = line.split[1]
    Key.create!(id: id, title: "key #{id}", key: line, created_at: CREATED_AT,
                fingerprint: Fingerprint.md5(blob), fingerprint_sha256: Fingerprint.sha256(blob), **attributes)
  end

  def ed25519(fill)
    ssh_line('ssh-ed25519', bytes(fill, 32))
  end

  def ecdsa(fill)
    ssh_line('ecdsa-sha2-nistp256', 'nistp256', "\x04".b + bytes(fill, 64))
  end

  def bytes(fill, length)
    (fill.b * length)[0, length]
  end

  # A public key is its fields, each behind its length.
  def ssh_line(algorithm, *fields)
    blob = [algorithm, *fields].map { |field| [field.bytesize].pack('N') + field.b }.join
    "#{algorithm} #{Base64.strict_encode64(blob)} a comment"
  end
end

# Rails itself uses this lenient Base64 decoder, and a gateway could easily differ from it.
module Fingerprint
  module_function

  def md5(key)
    Digest::MD5.hexdigest(Base64.decode64(key)).scan(/../).join(':')
  end

  def sha256(key)
    Digest::SHA256.base64digest(Base64.decode64(key)).delete('=')
  end
end
